"""Labels for capabilities: agreements alone, in the order of the pairs, from a server and from a local model."""

import json
import re
import socket
import threading
import time

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from grmlight import PrepareOptions, cli
from grmlight.data import prepare
from grmlight.data.labels import group_labels
from grmlight.labeling import EndpointAsker, LocalAsker, Question, label, read_capabilities
from tests.labeling.server import serving

CAPABILITIES = {"chat": {"length": "Longer is better.", "order": "Early letters are better."}, "*": {"length": "Long."}}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def pairs(tmp_path):
    sides = [{"prompt": f"say {i}", "chosen": "b" * (i + 1), "rejected": "a"} for i in range(1, 9)]
    rows = [{"id": f"p{i}", "category": "chat" if i % 2 else "code"} | each for i, each in enumerate(sides, 1)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def answers(body):
    """The two answers that a request asks about, and the capability."""
    text = body["messages"][0]["content"]
    first, second = (re.search(rf"\[Answer {letter}\]\n(.*)\n\n", text)[1] for letter in "AB")
    return first, second, re.search(r"single respect: (\w+)\.", text)[1]


def honest(body):
    first, second, capability = answers(body)
    better = len(first) > len(second) if capability == "length" else first < second
    return "A" if better else "**B**, since it is."


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_agreements_are_kept_and_named(pairs, tmp_path):
    with serving(honest) as (url, requests):
        found = label(pairs, tmp_path / "out.jsonl", CAPABILITIES, EndpointAsker(url, "judge", parallel=3))
    rows = read(tmp_path / "out.jsonl")
    expected = [(f"p{i}:{name}", name) for i in range(1, 9) for name in (["length", "order"] if i % 2 else ["length"])]
    assert [(row["id"], row["capability"]) for row in rows] == expected
    for row in rows:
        assert ("b" in row["chosen"]) == (row["capability"] == "length")
        assert {row["chosen"][0], row["rejected"][0]} == {"a", "b"}
    assert (found.pairs, found.kept) == (8, {"length": 8, "order": 4})
    assert not any({**found.split, **found.unreadable}.values())
    assert len(requests) == 24
    assert {request["path"] for request in requests} == {"/v1/chat/completions"}
    assert {request["body"]["model"] for request in requests} == {"judge"}
    assert {request["body"]["temperature"] for request in requests} == {0}
    assert not (tmp_path / "out.jsonl.part").exists()


def test_what_was_labeled_can_be_trained_on(pairs, tmp_path, byte_tokenizer):
    out = tmp_path / "out.jsonl"
    with serving(honest) as (url, _):
        label(pairs, out, CAPABILITIES, EndpointAsker(url))
    prepared = prepare(str(out), str(byte_tokenizer), PrepareOptions())
    found = group_labels(prepared.store, str(out), {"code": ["length"], "chat": ["order", "length"]}, strict=True)
    assert found.task_G.tolist() == [1, 1, 0] * 4
    assert found.capability_G.tolist() == [1, 0, 0] * 4


def test_ids_that_are_numbers_stay(tmp_path):
    rows = [{"id": n, "category": "chat", "prompt": f"say {n}", "chosen": "bb", "rejected": "a"} for n in (70, 71)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serving(honest) as (url, _):
        label(str(tmp_path / "pairs.jsonl"), tmp_path / "out.jsonl", {"chat": {"length": ""}}, EndpointAsker(url))
    assert [row["id"] for row in read(tmp_path / "out.jsonl")] == ["70:length", "71:length"]


def test_a_reply_that_follows_the_place_is_no_label(pairs, tmp_path):
    """A judge that always says A, and one that says nothing readable."""

    def biased(body):
        return "A" if answers(body)[2] == "length" else "Beauty lies in the eye of the beholder."

    with serving(biased) as (url, _):
        found = label(pairs, tmp_path / "out.jsonl", CAPABILITIES, EndpointAsker(url))
    assert read(tmp_path / "out.jsonl") == []
    assert found.split == {"length": 8, "order": 0}
    assert found.unreadable == {"length": 0, "order": 4}
    assert "length: 0 kept, 8 not agreed with itself, 0 unreadable" in found.describe()


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("A", "A"),
        (" (b) ", "B"),
        ("Answer: B", "B"),
        ("**A**.", "A"),
        ("<think>B? No.</think>\nA", "A"),
        ("", None),
        ("Both", None),
        ("neither A nor B", None),
        ("A/B", None),
        ("A better one is B.", None),
        ("I'd say A", None),
    ],
)
def test_a_letter_is_read_at_the_beginning_alone(reply, letter):
    with serving(lambda body: reply) as (url, _):
        assert EndpointAsker(url).ask(Question("p", "x", "y", "wit", "")) == letter


def test_the_order_does_not_depend_on_who_is_faster(pairs, tmp_path):
    def slow(body):
        time.sleep(0.05 if "say 1" in body["messages"][0]["content"] else 0)
        return honest(body)

    written = []
    for parallel in (1, 8):
        with serving(slow) as (url, _):
            label(pairs, tmp_path / "out.jsonl", CAPABILITIES, EndpointAsker(url, parallel=parallel))
        written.append((tmp_path / "out.jsonl").read_bytes())
    assert written[0] == written[1]


def test_errors_that_pass_are_tried_again(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    question = Question("p", "bb", "a", "length", "")
    with serving(honest, faults=[503, "break", 429]) as (url, requests):
        assert EndpointAsker(url, pause=0.01).ask(question) == "A"
    assert len(requests) == 4
    assert {request["key"] for request in requests} == {"Bearer secret"}


@pytest.mark.parametrize(("status", "tries"), [(401, 1), (500, 3)])
def test_errors_that_stay_are_said_in_one_line(status, tries):
    message = f"does not answer .status {status}"
    with serving(honest, faults=[status] * 9) as (url, requests), pytest.raises(ValueError, match=message):
        EndpointAsker(url, retries=2, pause=0.01).ask(Question("p", "bb", "a", "length", ""))
    assert len(requests) == tries


def test_a_server_that_is_silent_or_another_is_said():
    with serving(lambda body: b'{"hello": 1}') as (url, _), pytest.raises(ValueError, match="none of OpenAI's"):
        EndpointAsker(url).ask(Question("p", "bb", "a", "length", ""))
    released = threading.Event()
    with serving(lambda body: "A" if released.wait(5) else "B") as (url, _):
        with pytest.raises(ValueError, match="timed out"):
            EndpointAsker(url, timeout=0.1, retries=0).ask(Question("p", "bb", "a", "length", ""))
        released.set()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
        with pytest.raises(ValueError, match="refused"):
            EndpointAsker(url, retries=0).ask(Question("p", "bb", "a", "length", ""))
    with pytest.raises(ValueError, match="give the API's base"):
        EndpointAsker("file:///etc/passwd")


@pytest.mark.parametrize("torn", [False, True])
def test_a_run_that_was_stopped_goes_on(torn, pairs, tmp_path):
    out, journal = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    with serving(honest) as (url, _):
        label(pairs, out, CAPABILITIES, EndpointAsker(url, "judge"))
        expected = out.read_bytes()
        out.unlink()
        asker = EndpointAsker(url, "judge", parallel=1, retries=0)
        counted, true = [], asker.ask

        def failing(question):
            counted.append(question)
            if len(counted) > 14:
                raise ValueError("the server is gone")
            return true(question)

        asker.ask = failing
        with pytest.raises(ValueError, match=r"keeps 7 replies; run it again to go on"):
            label(pairs, out, CAPABILITIES, asker)
        assert not out.exists()
        if torn:
            with journal.open("a") as file:
                file.write('["A", ')
        again = EndpointAsker(url, "judge")
        asked, before = [], again.ask
        again.ask = lambda question: asked.append(question) or before(question)
        label(pairs, out, CAPABILITIES, again)
    assert len(asked) == 2 * (12 - 7)
    assert out.read_bytes() == expected


def test_a_journal_of_other_questions_is_refused(pairs, tmp_path):
    (tmp_path / "out.jsonl.part").write_text('{"questions": "others"}\n["A", "B"]\n')
    with pytest.raises(ValueError, match="remove it to begin anew"):
        label(pairs, tmp_path / "out.jsonl", CAPABILITIES, EndpointAsker("http://127.0.0.1:9/v1"))


def test_bad_capability_files_are_said(pairs, tmp_path):
    path = tmp_path / "capabilities.yaml"
    path.write_text("chat:\n  wit: It makes one laugh.\n  calm:\n")
    assert read_capabilities(path) == {"chat": {"wit": "It makes one laugh.", "calm": ""}}
    for text, message in (("[wit]", "give {category"), ("chat: wit", "give {category"), ("a: [", "cannot be read")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_capabilities(path)
    with pytest.raises(ValueError, match="no pair has a category"):
        label(pairs, tmp_path / "out.jsonl", {"poems": {"wit": ""}}, EndpointAsker("http://127.0.0.1:9/v1"))
    with pytest.raises(ValueError, match="a folder that exists"):
        label(pairs, tmp_path / "no" / "out.jsonl", CAPABILITIES, EndpointAsker("http://127.0.0.1:9/v1"))


@pytest.fixture(scope="module")
def local(tmp_path_factory, byte_tokenizer):
    """A folder with a tiny random causal LM and its tokenizer."""
    folder = tmp_path_factory.mktemp("lm")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(byte_tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("template", [True, False])
def test_a_local_model_names_the_letter_that_generation_would(template, local):
    """Against the model's own full logits, after the prompt as a chat template or plain text has it."""
    asker = LocalAsker(str(local), device="cpu")
    if not template:
        asker.tokenizer.chat_template = None
    lm, letters = AutoModelForCausalLM.from_pretrained(local).eval(), []
    for i in range(6):
        question = Question([{"role": "user", "content": f"why {i}?"}], f"so {i}", "not", "wit", "It is funny.")
        turn = [{"role": "user", "content": question.text}]
        text = f"{question.text}\nAnswer: "
        if template:
            text = asker.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        ids = asker.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = lm(input_ids=ids).logits[0, -1]
        a, b = (asker.tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "AB")
        letters.append("A" if logits[a] > logits[b] else "B")
        assert asker.ask(question) == letters[-1]
        assert question.swapped.text != question.text


def test_the_command_labels_with_a_local_model_and_with_an_endpoint(pairs, local, tmp_path, capsys):
    path = tmp_path / "capabilities.yaml"
    path.write_text(json.dumps(CAPABILITIES))
    common = ["label", pairs, "--out", str(tmp_path / "out.jsonl"), "--capabilities", str(path)]
    cli.main([*common, "--model", str(local)])
    assert "8 pairs" in capsys.readouterr().out
    with serving(honest) as (url, _):
        cli.main([*common, "--endpoint", url, "--model", "judge"])
    assert "length: 8 kept" in capsys.readouterr().out
    assert len(read(tmp_path / "out.jsonl")) == 12
    with pytest.raises(SystemExit, match="name the language model"):
        cli.main(common)


def test_the_pairs_are_never_replaced_by_their_labels(pairs, tmp_path):
    before = (tmp_path / "pairs.jsonl").read_bytes()
    with pytest.raises(ValueError, match="is the source, or lies in it"):
        label(pairs, tmp_path / "pairs.jsonl", CAPABILITIES, EndpointAsker("http://127.0.0.1:1", "judge"))
    assert (tmp_path / "pairs.jsonl").read_bytes() == before


def test_a_ranking_is_named(tmp_path):
    row = {"prompt": "why", "responses": ["a", "b", "c"], "ratings": [1, 2, 3], "category": "chat"}
    (tmp_path / "ranked.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="row 1 is a ranking of 3 responses"):
        label(str(tmp_path / "ranked.jsonl"), tmp_path / "out.jsonl", CAPABILITIES, EndpointAsker("http://127.0.0.1:1"))


def test_a_reply_in_parts_is_said():
    parts = json.dumps({"choices": [{"message": {"content": [{"type": "text", "text": "A"}]}}]}).encode()
    question = Question("why", "a", "b", "length", "Long.")
    with serving(lambda body: parts) as (url, _), pytest.raises(ValueError, match="chat protocol"):
        EndpointAsker(url, "judge").ask(question)
