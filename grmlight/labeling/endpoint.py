"""Asking a server that speaks OpenAI's chat protocol, by the standard library's HTTP."""

from __future__ import annotations

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from typing import Any

from grmlight.labeling.ask import Letter, Question

KEY = "OPENAI_API_KEY"
"""The environment variable whose value is sent as a bearer token, if it is set."""

_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_LETTER = re.compile(r"\W*(?:answer\W+)?(?P<letter>[AB])(?:\W*$|\W*\n|[*\]).:,;])", re.IGNORECASE)
"""A letter that stands alone: an article or an alternative is none."""

_WORTH_ANOTHER_TRY = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


class EndpointAsker:
    """An OpenAI-compatible endpoint; it is asked for its likeliest reply (temperature 0).

    Args:
        url: the API's base, as in http://127.0.0.1:8000/v1.
        model: the name it serves the model by; None leaves that to the server.
        timeout: seconds to wait for a reply.
        retries: further tries after an error that may pass.
        parallel: questions at once.
        max_tokens: longest reply; let models that think aloud have room.
        pause: seconds before the second try, doubled each time.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        timeout: float = 60.0,
        retries: int = 5,
        parallel: int = 4,
        max_tokens: int = 1024,
        pause: float = 1.0,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"endpoint {url!r}: give the API's base, as in http://127.0.0.1:8000/v1")
        if timeout <= 0 or retries < 0 or parallel < 1 or max_tokens < 1:
            raise ValueError("timeout, parallel and max_tokens must be positive, and retries at least 0")
        self.url = f"{url.rstrip('/')}/chat/completions"
        self.model, self.timeout, self.retries = model, timeout, retries
        self.parallel, self.max_tokens, self.pause = parallel, max_tokens, pause
        self.name = f"{model or 'the model'} at {url}"

    def ask(self, question: Question) -> Letter | None:
        """The letter that the reply begins with; None if it begins with none. Errors: see `reply`."""
        return self.reply(question.text)

    def reply(self, text: str) -> Letter | None:
        """The letter that the reply to a text begins with; None if it begins with none.

        Errors: ValueError if the server refuses, or does not answer in any of the tries.
        """
        asked = {"messages": [{"role": "user", "content": text}], "temperature": 0, "seed": 0}
        named = {"model": self.model} if self.model else {}
        reply = self._post(named | asked | {"max_tokens": self.max_tokens})
        try:
            content = _THOUGHT.sub("", reply["choices"][0]["message"]["content"] or "")
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"{self.url}: its reply is none of OpenAI's chat protocol; check the URL") from error
        found = _LETTER.match(content)
        return None if found is None else "A" if found["letter"].upper() == "A" else "B"

    def _post(self, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)  # noqa: S310 - checked above
        reason = ""
        for tried in range(self.retries + 1):
            if tried:
                time.sleep(self.pause * 2 ** (tried - 1))
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:  # noqa: S310 - checked above
                    return json.load(response)
            except urllib.error.HTTPError as error:
                reason = f"status {error.code}: {_brief(error)}"
                if error.code not in _WORTH_ANOTHER_TRY:
                    break
            except (OSError, http.client.HTTPException, ValueError) as error:
                # No connection, none in time, a reply that breaks off or is no JSON.
                reason = str(getattr(error, "reason", error)) or type(error).__name__
        raise ValueError(f"{self.url} does not answer ({reason}); look at the server, its URL and {KEY}")


def _brief(error: urllib.error.HTTPError, length: int = 200) -> str:
    with error:
        return " ".join(error.read(4 * length).decode(errors="replace").split())[:length]
