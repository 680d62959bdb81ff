"""read_pairs: every row format and every reason to refuse a row, against the oracle."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grmlight._data_rs import DataError, read_pairs
from tests.data.rows import agree, assistant, lines, system, user

CHAT = {"chosen": [user("q"), assistant("yes")], "rejected": [user("q"), assistant("no")]}
TEXT = {"prompt": "p", "chosen": "a", "rejected": "b"}


def feedback(a, b, rating_a, rating_b, source="x"):
    ratings = {"conv_A_rating": rating_a, "conv_B_rating": rating_b}
    return {"conv_A": a, "conv_B": b, **ratings, "source": source, "id": 7}


def ranked(responses="abc", **columns):
    return {"prompt": "p", "responses": list(responses), **columns}


@pytest.mark.parametrize(
    ("row", "prompt", "responses"),
    [
        (TEXT, "p", ["a", "b"]),
        (TEXT | {"prompt": ""}, "", ["a", "b"]),
        (CHAT, [user("q")], [[assistant("yes")], [assistant("no")]]),
        (CHAT | {"prompt": "q"}, [user("q")], [[assistant("yes")], [assistant("no")]]),
        (TEXT | {"prompt": [system("s"), user("q")]}, [system("s"), user("q")], [[assistant("a")], [assistant("b")]]),
        (TEXT | {"chosen": [assistant("a")]}, [user("p")], [[assistant("a")], [assistant("b")]]),
        (
            {"prompt": [user("q")], "chosen": [assistant("a"), user("r"), assistant("c")], "rejected": "b"},
            [user("q")],
            [[assistant("a"), user("r"), assistant("c")], [assistant("b")]],
        ),
        (
            {"chosen": "The sky is blue.", "rejected": "The sky is red."},
            "",
            ["The sky is blue.", "The sky is red."],
        ),
        (
            {"chosen": "\n\nHuman: hi\n\nAssistant: yes", "rejected": "\n\nHuman: hi\n\nAssistant:  no "},
            [user("hi")],
            [[assistant("yes")], [assistant(" no ")]],
        ),
    ],
)
def test_formats_become_prompt_and_responses(row, prompt, responses):
    pairs, _ = agree(lines(row))
    assert pairs.group(0) == (prompt, responses)


def test_unified_feedback_columns():
    a, b = [user("post"), assistant("A")], [user("post"), assistant("B")]
    rows = [
        feedback(a, b, 1.0, 4.5),
        feedback(a, b, 3, 3.0),
        feedback([user(" x "), assistant("A")], [user(" x "), assistant("B")], 2, 1, "OpenAI/Summarize_from_feedback"),
        feedback(a, b, None, 1),
        feedback(a, b, "5", 1),
    ]
    pairs, reading = agree(lines(*rows), paper_text=True)
    assert pairs.refused == {"tie": [2], "bad_number": [4, 5]}
    assert pairs.group(0) == ([user("post")], [[assistant("B")], [assistant("A")]])
    assert [pair.comparisons() for pair in reading.pairs] == [[(0, 1, 1.0, 3.5)], [(0, 1, 1.0, 1.0)]]
    assert pairs.group(1)[0] == [user("Generate one-sentence summary for the following post: x")]
    plain, _ = agree(lines(*rows))
    assert plain.group(1)[0] == [user(" x ")]
    assert len(read_pairs(lines(*rows[:2]), {"on_bad_row": "raise"})) == 1


def test_preference_700k_columns():
    row = CHAT | {"chosen_score": 0.9, "rejected_score": 0.25}
    _, reading = agree(lines(row, CHAT | {"chosen_score": None, "rejected_score": None}, row | {"margin": 2}))
    margins = [margin for pair in reading.pairs for *_, margin in pair.comparisons()]
    assert margins == pytest.approx([0.65, 0.0, 2.0])


def test_a_ranking_is_one_group_of_all_its_comparisons():
    rows = [
        ranked(ratings=[1, 4.5, 1], weight=2, soft_label=0.75),
        ranked("xyz", ranks=[2, 1, 3]),
        ranked("de", ratings=[1, 2], ranks=[9, 3], margin=7),
    ]
    for on_tie, first in (("drop", []), ("keep", [(0, 2, 0.5, 0.0)])):
        pairs, reading = agree(lines(*rows), on_tie=on_tie)
        assert pairs.group(0) == ("p", ["a", "b", "c"])
        assert [sorted(each.comparisons()) for each in reading.pairs] == [
            sorted([(1, 0, 0.75, 3.5), (1, 2, 0.75, 3.5), *first]),
            [(0, 2, 1.0, 0.0), (1, 0, 1.0, 0.0), (1, 2, 1.0, 0.0)],
            [(1, 0, 1.0, 7.0)],
        ]
        assert pairs.noted == ({"tie": [1]} if on_tie == "drop" else {})


def test_responses_of_a_ranking_are_text_or_messages():
    turns = [user("q"), assistant("a"), user("r")]
    rows = [
        ranked(["a", [assistant("b")], "c"], ranks=[1, 2, 3]),
        ranked([[*turns, assistant(word)] for word in "abc"], ranks=[1, 2, 3]),
        ranked([[*turns, assistant("a")], [user("q"), assistant("b")], [*turns, assistant("c")]], ranks=[1, 2, 3]),
    ]
    pairs, _ = agree(lines(*rows))
    assert pairs.group(0) == ([user("p")], [[assistant(word)] for word in "abc"])
    assert pairs.group(1) == (turns, [[assistant(word)] for word in "abc"])
    assert pairs.refused == {"prompt_differs": [3]}


def test_ties_are_kept_where_asked_for():
    a, b = [user("post"), assistant("A")], [user("post"), assistant("B")]
    rows = [feedback(a, b, 3, 3.0), ranked(ratings=[2, 2, 2]), ranked(ranks=[1, 1, 1])]
    pairs, _ = agree(lines(*rows))
    assert (pairs.refused, len(pairs)) == ({"tie": [1, 2, 3]}, 0)
    pairs, reading = agree(lines(*rows), on_tie="keep")
    assert pairs.group(0) == ([user("post")], [[assistant("A")], [assistant("B")]])
    assert [each.comparisons()[0] for each in reading.pairs] == [(0, 1, 0.5, 0.0)] * 3
    assert pairs.noted == {"duplicate": [3]}


def test_comparisons_seen_before_are_found_in_rankings_and_pairs():
    rows = [
        ranked(ratings=[3, 2, 1]),
        {"prompt": "p", "chosen": "a", "rejected": "c"},  # as in row 1
        {"prompt": "p", "chosen": "c", "rejected": "b"},  # the other way round
        {"prompt": "p", "chosen": "c", "rejected": "b", "soft_label": 0.2},  # as in row 1
        {"prompt": "p", "chosen": "c", "rejected": "b", "soft_label": 0.5},  # a tie is no side
        {"prompt": "p", "chosen": "b", "rejected": "c", "soft_label": 0.5},  # the same tie
        ranked("bca", ranks=[2, 3, 1]),  # row 1 in another order
        ranked("abz", ratings=[1, 2, 3]),  # one of three the other way round
        ranked("abq", ratings=[2, 1, 3]),  # one of three as in row 1, and the other way round than in row 8
    ]
    pairs, _ = agree(lines(*rows))
    assert pairs.noted == {"duplicate": [2, 4, 6, 7], "contradiction": [3, 8, 9]}
    pairs, _ = agree(lines(*rows), on_duplicate="drop", on_contradiction="drop")
    assert pairs.refused == {"duplicate": [2, 4, 6, 7], "contradiction": [3, 8]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "invalid_json"),
        ("[1]", "invalid_json"),
        ('{"chosen": "a", "rejected": "\\ud800"}', "invalid_json"),
        ({"chosen": "a"}, "unknown_columns"),
        (TEXT | {"chosen": None}, "non_string"),
        (TEXT | {"prompt": None}, "non_string"),
        (TEXT | {"chosen": [{"role": "assistant"}]}, "non_string"),
        (TEXT | {"chosen": [{"role": "assistant", "content": [{"type": "text", "text": "a"}]}]}, "non_string"),
        ({"chosen": "a", "rejected": [assistant("b")]}, "non_string"),
        ('{"prompt": NaN, "chosen": "a", "rejected": "b"}', "non_string"),
        (TEXT | {"chosen": " \n\x1c\u3000"}, "empty"),
        (TEXT | {"prompt": [], "chosen": "x"}, "empty"),
        (TEXT | {"chosen": []}, "empty"),
        (TEXT | {"prompt": " ", "chosen": [assistant("a")]}, "empty"),
        ({"chosen": [assistant("a")], "rejected": [assistant("b")]}, "empty"),
        (TEXT | {"chosen": "b"}, "identical"),
        (TEXT | {"chosen": [assistant("b")]}, "identical"),
        (CHAT | {"chosen": [user("Q"), assistant("yes")]}, "prompt_differs"),
        ({"chosen": [assistant("q"), assistant("a")], "rejected": [assistant("q"), assistant("b")]}, "role_order"),
        ({"prompt": [user("q"), assistant("a")], "chosen": "a", "rejected": "b"}, "role_order"),
        ({"prompt": [user("q")], "chosen": [user("a")], "rejected": "b"}, "role_order"),
        ({"prompt": [{"role": "tool", "content": "q"}], "chosen": "a", "rejected": "b"}, "role_order"),
        ({"prompt": [user("q"), system("s"), user("q")], "chosen": "a", "rejected": "b"}, "role_order"),
        ({"prompt": [system("s")], "chosen": "a", "rejected": "b"}, "role_order"),
        (TEXT | {"weight": -1}, "bad_number"),
        (TEXT | {"soft_label": 1.5}, "bad_number"),
        (TEXT | {"margin": "1"}, "bad_number"),
        (TEXT | {"margin": True}, "bad_number"),
        (TEXT | {"margin": 1e39}, "bad_number"),
        (TEXT | {"margin": float("nan")}, "bad_number"),
        (TEXT | {"weight": float("inf")}, "bad_number"),
        (json.dumps(TEXT | {"margin": 1}).replace(": 1}", ": -1e999}"), "bad_number"),
        (ranked(), "unknown_columns"),
        (ranked("a", ratings=[1]), "response_count"),
        (ranked("", ratings=[]), "response_count"),
        (ranked(map(str, range(257)), ratings=[1] * 257), "response_count"),
        (ranked(["a", 1], ratings=[1, 2]), "non_string"),
        (ranked(ratings=[1, 2, 3]) | {"responses": "abc"}, "non_string"),
        (ranked(ratings=[1, 2, 3]) | {"prompt": None}, "non_string"),
        (ranked(ratings=[1, 2]), "bad_number"),
        (ranked(ratings=[1, 2, None]), "bad_number"),
        (ranked(ratings=[1, 2, True]), "bad_number"),
        (ranked(ratings=[1, 2, float("nan")]), "bad_number"),
        (ranked(ratings=None, ranks=None), "bad_number"),
        (ranked(ratings=3), "bad_number"),
        (ranked(ratings=[1e308, -1e308, 0]), "bad_number"),
        (ranked(ratings=[1, 2, 3], ranks=[3, 2, 2]), "ranking_differs"),
        (ranked(ratings=[1, 2, 3], ranks=[1, 2, 3]), "ranking_differs"),
        (ranked("aba", ratings=[1, 2, 3]), "identical"),
        (ranked(["a", " ", "c"], ratings=[1, 2, 3]), "empty"),
        (ranked(["a", [user("b")], "c"], ratings=[1, 2, 3]), "role_order"),
    ],
)
def test_a_bad_row_is_refused_by_its_reason(row, reason):
    data = lines(TEXT | {"prompt": "first"}, row, TEXT | {"prompt": "last"})
    pairs, _ = agree(data)
    assert pairs.refused == {reason: [2]}
    assert [pairs.row(index) for index in range(len(pairs))] == [1, 3]
    with pytest.raises(DataError, match=r"^rows\.jsonl:2:(\d+:)? .*on_bad_row=drop$"):
        read_pairs(data, {"name": "rows.jsonl", "on_bad_row": "raise"})


@pytest.mark.parametrize(
    ("row", "place"),
    [
        (b'{"prompt": "p", "chosen": }', r"2:27: not a JSON object in UTF-8 \(expected value\);"),
        (b'{"prompt": "\xc3\xa9\xff"}', r"2:15: not a JSON object in UTF-8 \(not UTF-8\);"),
        (b'{"weight": NaN, "margin": -1e999}', "2:32: a number that is missing, not finite or out of range"),
        (lines(TEXT | {"margin": "1"}), "2: a number that is missing, not finite or out of range in column margin;"),
        (lines(TEXT | {"rejected": 1}), "2: a text, role or content that is no string in column rejected;"),
        (lines(ranked(["a", 1], ratings=[1, 2])), "2: a text, .* in column responses;"),
    ],
)
def test_where_a_row_is_broken_is_said(row, place):
    with pytest.raises(DataError, match=rf"^rows\.jsonl:{place}"):
        read_pairs(b"\n".join([lines(TEXT), row]), {"name": "rows.jsonl", "on_bad_row": "raise"})


def test_repeated_pairs_follow_their_policies():
    swapped = TEXT | {"chosen": "b", "rejected": "a"}
    data = lines(TEXT, TEXT | {"prompt": "q"}, TEXT, swapped)
    agree(data)
    pairs, _ = agree(data, on_duplicate="drop", on_contradiction="drop")
    assert pairs.refused == {"duplicate": [3], "contradiction": [4]}
    with pytest.raises(DataError, match=r"<bytes>:3: .*on_duplicate=keep"):
        read_pairs(data, {"on_duplicate": "raise"})
    with pytest.raises(DataError, match=r"<bytes>:4: .*on_contradiction=keep"):
        read_pairs(data, {"on_contradiction": "raise"})


def test_the_first_row_must_be_a_pair():
    with pytest.raises(DataError, match=r"^x: its columns are question, score; a pair needs chosen and rejected"):
        read_pairs(lines({"score": 1, "question": 2}, TEXT), {"name": "x"})
    assert len(read_pairs(b"", {})) == 0


@pytest.mark.parametrize(
    "options", [{"strides": 2}, {"stride": 0}, {"flip": 1.5}, {"on_bad_row": "keep"}, {"on_tie": "x"}]
)
def test_wrong_options_are_named(options):
    with pytest.raises(DataError, match=r"stride|flip|keep|drop"):
        read_pairs(lines(TEXT), options)


TEXTS = st.sampled_from(["", " ", "a", "a b", "a c", "\n\nHuman: q\n\nAssistant: a", "\n\nHuman: q\n\nAssistant: b"])
MESSAGES = st.lists(
    st.builds(lambda role, content: {"role": role, "content": content}, st.sampled_from(["user", "assistant"]), TEXTS),
    max_size=4,
)
VALUES = st.one_of(TEXTS, TEXTS, MESSAGES, MESSAGES, st.floats(-2, 2), st.none(), st.integers())
COLUMNS = [
    *("prompt", "chosen", "rejected", "responses", "ratings", "ranks", "conv_A", "conv_B", "conv_A_rating"),
    *("conv_B_rating", "margin", "id", "capability"),
]
ROWS = st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=9) | st.fixed_dictionaries(
    {"chosen": TEXTS | MESSAGES, "rejected": TEXTS | MESSAGES}, optional={"prompt": TEXTS | MESSAGES}
)


SCORES = st.lists(st.sampled_from([0, 1, 2.5]), min_size=2, max_size=4)
RANKINGS = st.fixed_dictionaries(
    {"prompt": st.sampled_from(["q", "r"]) | VALUES, "responses": st.lists(TEXTS | MESSAGES, max_size=4) | VALUES},
    optional={
        "ratings": SCORES | VALUES,
        "ranks": SCORES,
        "soft_label": st.floats(0, 1),
        "margin": st.floats(-2, 2),
        "chosen": st.none(),
        "rejected": st.none(),
        "capability": st.sampled_from(["", "wit", "style"]),
    },
) | st.builds(
    lambda words, scores, name: {"prompt": "q", "responses": words[: len(scores)], name: scores[: len(words)]},
    st.permutations(["a", "b", "c", "d"]),
    SCORES,
    st.sampled_from(["ratings", "ranks"]),
)


@settings(deadline=None, max_examples=200)
@given(rows=st.lists(ROWS | RANKINGS, max_size=8), stride=st.integers(1, 3))
def test_any_rows_agree_with_the_oracle(rows, stride):
    data = lines({"chosen": "x y", "rejected": "x z"}, *rows)
    agree(data, stride=stride, flip=0.5)
    agree(data, on_duplicate="drop", on_contradiction="drop", on_tie="keep", flip=0.5)


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet=st.sampled_from("ab \né\u3000"), max_size=12), st.text(alphabet="ab \né", max_size=12))
def test_any_whole_texts_agree_with_the_oracle(chosen, rejected):
    agree(lines({"chosen": chosen, "rejected": rejected}))
