"""A server on this machine that speaks OpenAI's chat protocol, as far as labeling needs it; it stops by itself."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextlib.contextmanager
def serving(reply, faults=()):
    """Serve on a free port; yields the API's base and the requests that came.

    Args:
        reply: from a request's body to the reply's text, or to the bytes of a whole body.
        faults: what the first requests get instead: a status, or "break" for a reply that breaks off.
    """
    requests, waiting, lock = [], list(faults), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                requests.append({"path": self.path, "key": self.headers["Authorization"], "body": body})
                fault = waiting.pop(0) if waiting else None
            if isinstance(fault, int):
                self.send_error(fault, "as told")
                return
            content = reply(body)
            if isinstance(content, str):
                content = json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if fault == "break" else content)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
