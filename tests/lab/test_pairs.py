import dataclasses

import pytest

from grmlight.lab.gold import Answer, Gold, parts
from grmlight.lab.pairs import SMALLEST_GAP, PairMaker, read_rows, tamper, write_pairs, write_rows
from grmlight.lab.words import FILLERS, stream
from grmlight.lab.world import SAMPLED, TESTS, TRAIN, WRITTEN, Prompt, Split, World

FIELDS = ["id", "source", "category", "prompt", "chosen", "rejected", "margin"]
NAMES = (TRAIN, *TESTS)


def path(shipped, name):
    return shipped.train if name == TRAIN else shipped.tests[name]


def gaps(gold, rows):
    """The gold of each chosen answer less that of the rejected one."""
    prompts = [row["prompt"] for row in rows]
    return gold.scores(prompts, [row["chosen"] for row in rows]) - gold.scores(
        prompts, [row["rejected"] for row in rows]
    )


@pytest.fixture(scope="module")
def maker(shipped, lm, words):
    return PairMaker(shipped.gold, lm, words)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_rows_have_the_projects_schema(shipped, name):
    rows = read_rows(path(shipped, name))
    assert len(rows) == (1000 if name == TRAIN else 500)
    assert all(list(row) == FIELDS for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert row["category"] == Prompt.parse(row["prompt"]).topic
        assert row["chosen"] != row["rejected"]
        assert not any("<" in row[field] for field in ("prompt", "chosen", "rejected"))
        assert all(row[field] == " ".join(row[field].split()) != "" for field in ("prompt", "chosen", "rejected"))


@pytest.mark.parametrize("name", NAMES)
def test_shipped_prompts_belong_to_their_split(shipped, name):
    split = SAMPLED.get(name, Split.ID)
    assert all(split.holds(Prompt.parse(row["prompt"])) for row in read_rows(path(shipped, name)))


@pytest.mark.parametrize("name", NAMES)
def test_shipped_margins_are_the_gold_gap(shipped, name):
    rows = read_rows(path(shipped, name))
    assert [row["margin"] for row in rows] == pytest.approx(abs(gaps(shipped.gold, rows)), abs=1e-4)
    assert min(row["margin"] for row in rows) >= SMALLEST_GAP


@pytest.mark.parametrize("name", TESTS)
def test_shipped_test_labels_follow_the_gold(shipped, name):
    assert (gaps(shipped.gold, read_rows(shipped.tests[name])) > 0).all()


def test_shipped_training_labels_are_noisy(shipped):
    agreement = (gaps(shipped.gold, read_rows(shipped.train)) > 0).mean()
    assert 0.78 < agreement < 0.85


@pytest.mark.parametrize("name", WRITTEN)
def test_shipped_pairs_of_authors_are_made_again_from_the_seed(shipped, maker, tmp_path, name):
    pairs = maker.draw(name, 500)
    rows = [pair.row(f"{name}-{number:05}", "world-0", pair.gap > 0) for number, pair in enumerate(pairs)]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == read_rows(shipped.tests[name])


def test_the_same_seeds_give_the_same_bytes(maker, tmp_path):
    for folder in ("a", "b"):
        write_pairs(tmp_path / folder, maker, train=40, test=20)
    for name in NAMES:
        assert (tmp_path / "a" / f"{name}.jsonl").read_bytes() == (tmp_path / "b" / f"{name}.jsonl").read_bytes()


def test_label_noise_has_its_own_seed(maker, tmp_path):
    for seed in (0, 1):
        write_pairs(tmp_path / str(seed), maker, train=60, test=10, label_seed=seed, suffix=".jsonl.gz")
    first, second = (read_rows(tmp_path / str(seed) / "train.jsonl.gz") for seed in (0, 1))
    assert [row["prompt"] for row in first] == [row["prompt"] for row in second]
    answers = [[{row["chosen"], row["rejected"]} for row in rows] for rows in (first, second)]
    assert answers[0] == answers[1]
    assert [row["chosen"] for row in first] != [row["chosen"] for row in second]
    assert read_rows(tmp_path / "0" / "id.jsonl.gz") == read_rows(tmp_path / "1" / "id.jsonl.gz")


def test_data_have_their_own_seed(maker):
    other = dataclasses.replace(maker, seed=1)
    assert maker.draw("id", 20) == maker.draw("id", 20) != other.draw("id", 20)
    assert maker.draw("id", 10) == maker.draw("id", 20)[:10]


def test_sets_differ_although_their_prompts_may_not(maker):
    assert maker.draw("train", 20) != maker.draw("id", 20)


def test_an_lm_that_never_ends_is_refused(maker, monkeypatch):
    draw = "grmlight.lab.pairs.sample_responses"
    cut = dataclasses.make_dataclass("Cut", ["text", "ended"])
    monkeypatch.setattr(draw, lambda m, t, prompts, n, seed: [[cut("cat", False)] * n for _ in prompts])
    with pytest.raises(ValueError, match="pretrain it for longer"):
        maker.draw("id", 1)


def test_good_pairs_are_mostly_won_by_the_better_author(maker):
    assert sum(pair.gap > 0 for pair in maker.draw("good", 300)) / 300 > 0.55


def test_edits_seldom_help(maker):
    assert sum(pair.gap > 0 for pair in maker.draw("hack", 300)) / 300 > 0.75


def test_edits_do_one_of_four_things():
    world, rng = World(0), stream("edits")
    prompt = Prompt("animals", "color", 2)
    answer = " , ".join(f"{entity} {world.facts[entity, 'color']}" for entity in ("cat", "dog"))
    seen = set()
    for text in (tamper(prompt, answer, rng) for _ in range(200)):
        items = Answer.parse(text).items
        entities = [next(word for word in item if word not in FILLERS) for item in items]
        values = [item[-1] for item in items]
        original = [item.split()[1] for item in answer.split(" , ")]
        if len(items) == 3:
            assert items[2] in items[:2]
            seen.add("duplicated")
        elif any(word in FILLERS for word in items[0]):
            assert parts(world, prompt, text).concise == -2
            seen.add("stuffed")
        elif entities != ["cat", "dog"]:
            assert values == original
            seen.add("entities")
        elif values != original:
            seen.add("values")
    assert seen == {"duplicated", "stuffed", "entities", "values"}


def test_edits_leave_garbled_items_alone():
    rng = stream("garbled")
    edits = {tamper(Prompt("animals", "color", 1), "red cat", rng) for _ in range(50)}
    assert edits == {"red cat", "red cat , red cat"}


def test_gold_of_a_pair_is_standardized(maker):
    pair = maker.draw("id", 1)[0]
    raw = Gold(maker.gold.world)
    expected = raw.score(pair.prompt, pair.first) - raw.score(pair.prompt, pair.second)
    assert pair.gap == pytest.approx(expected / maker.gold.deviation)


def test_training_labels_are_bradley_terry(shipped):
    """Wide gaps are hardly ever mislabeled, narrow ones nearly half the time."""
    rows = sorted(read_rows(shipped.train), key=lambda row: row["margin"])
    right = list(gaps(shipped.gold, rows) > 0)
    shares = [sum(right[start : start + 250]) / 250 for start in range(0, 1000, 250)]
    assert shares[0] < 0.7
    assert shares[-1] > 0.95
