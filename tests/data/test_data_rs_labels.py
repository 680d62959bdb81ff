"""What a row's labels mean: absent columns, margins, capabilities, ids; against the oracle."""

from tests.data.rows import agree, assistant, lines, user
from tests.data.test_data_rs_rows import CHAT, TEXT, feedback, ranked


def test_a_column_that_is_null_counts_as_absent():
    """As tables have it that hold rows of several formats."""
    rows = [
        ranked(ratings=[1, 2, 3], chosen=None, rejected=None, conv_A=None, ranks=None),
        CHAT | {"prompt": None, "responses": None, "ratings": None},
        feedback([user("q"), assistant("A")], [user("q"), assistant("B")], 2, 1) | {"chosen": None, "rejected": None},
        ranked(ratings=None, ranks=None, chosen="a", rejected="b"),
        ranked(ratings=None, ranks=None),
        TEXT | {"chosen": None},
        TEXT | {"prompt": None},
    ]
    pairs, _ = agree(lines(*rows))
    assert [len(pairs.group(index)[1]) for index in range(len(pairs))] == [3, 2, 2, 2]
    assert pairs.refused == {"bad_number": [5], "non_string": [6, 7]}


def test_a_null_in_the_first_row_is_a_fault_of_that_row():
    pairs, _ = agree(lines(TEXT | {"rejected": None}, TEXT))
    assert pairs.refused == {"non_string": [1]}


def test_differences_are_those_of_the_side_that_the_label_prefers():
    scores = {"chosen_score": 0.75, "rejected_score": 0.25}
    a, b = [user("q"), assistant("A")], [user("q"), assistant("B")]
    rows = [
        CHAT | scores | {"soft_label": 0.8},
        CHAT | scores | {"soft_label": 0.2},
        CHAT | scores | {"soft_label": 0.2, "margin": 2},
        feedback(a, b, 3, 1) | {"soft_label": 0.25},
        ranked("ab", ratings=[1, 4], soft_label=0.25),
    ]
    _, reading = agree(lines(*rows))
    assert [each.comparisons()[0][3] for each in reading.pairs] == [0.5, -0.5, 2.0, -2.0, -3.0]


def test_labels_for_different_capabilities_repeat_nothing():
    swapped = TEXT | {"chosen": "b", "rejected": "a"}
    rows = [
        TEXT,
        TEXT | {"capability": "wit"},
        swapped | {"capability": "clarity"},
        TEXT | {"capability": "wit"},  # as row 2
        TEXT | {"capability": "clarity"},  # row 3 the other way round
        TEXT | {"capability": ""},  # as row 1: none
    ]
    pairs, _ = agree(lines(*rows))
    assert pairs.noted == {"duplicate": [4, 6], "contradiction": [5]}


def test_ids_and_categories_are_those_of_the_rows():
    rows = [TEXT | {"id": 7}, TEXT | {"id": "x", "category": "chat"}, TEXT | {"id": 1.5}]
    pairs, reading = agree(lines(*rows))
    found = [(pairs.id(index), pairs.category(index)) for index in range(3)]
    assert found == [(pair.id, pair.category) for pair in reading.pairs] == [("7", None), ("x", "chat"), ("3", None)]
