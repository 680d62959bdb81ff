"""Preference pairs of a world, as JSON lines.

Notable decisions:

- Both answers of a pair come from the pretrained LM, except in the two sets that shift the generator.
- Training labels are noisy as people's are: Bradley-Terry on the gold gap. Test labels follow the gold.
- Prompts and answers, and labels, have separate seeds.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
from itertools import islice
from typing import TYPE_CHECKING

from tqdm import tqdm

from grmlight.lab.author import Author
from grmlight.lab.gold import Answer, stated_fact
from grmlight.lab.sample import sample_responses
from grmlight.lab.words import ENTITIES, FILLERS, RELATIONS, SPECIALS, pick, stream
from grmlight.lab.world import SAMPLED, TESTS, TRAIN, WRITTEN, Split, draw_prompt

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from grmlight.lab.gold import Gold
    from grmlight.lab.sample import Sample
    from grmlight.lab.world import Prompt

SMALLEST_GAP = 0.05
LABEL_SCALE = 2.0


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two answers to a prompt, and the gold of the first less that of the second, in standard deviations."""

    prompt: Prompt
    first: str
    second: str
    gap: float

    def row(self, name: str, source: str, first_chosen: bool) -> dict[str, str | float]:
        """The pair as a row of the project's schema; the margin is the absolute gap, whatever the label."""
        chosen, rejected = (self.first, self.second) if first_chosen else (self.second, self.first)
        return {
            "id": name,
            "source": source,
            "category": self.prompt.topic,
            "prompt": self.prompt.text,
            "chosen": chosen,
            "rejected": rejected,
            "margin": round(abs(self.gap), 4),
        }


@dataclasses.dataclass(frozen=True)
class PairMaker:
    """Draws pairs of a world.

    Attributes:
        gold: what labels follow.
        model: the pretrained LM.
        tokenizer: its tokenizer.
        seed: of prompts and answers.
    """

    gold: Gold
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    seed: int = 0

    def draw(self, name: str, count: int) -> list[Pair]:
        """The first `count` usable pairs of the training set or of a test set, by its name."""
        rng = stream(self.gold.world.seed, self.seed, "pairs", name)
        source = self._written(name, rng) if name in WRITTEN else self._sampled(SAMPLED.get(name, Split.ID), rng)
        score = self.gold.score
        pairs = (Pair(*answers, score(*answers[:2]) - score(answers[0], answers[2])) for answers in source)
        return list(islice((pair for pair in pairs if abs(pair.gap) >= SMALLEST_GAP), count))

    def _sampled(self, split: Split, rng: random.Random, block: int = 250) -> Iterator[tuple[Prompt, str, str]]:
        while True:
            prompts = [draw_prompt(rng, split) for _ in range(block)]
            texts = [prompt.text for prompt in prompts]
            samples = sample_responses(self.model, self.tokenizer, texts, 2, seed=rng.getrandbits(63))
            usable = [
                (prompt, first.text, second.text)
                for prompt, (first, second) in zip(prompts, samples, strict=True)
                if _is_whole(first) and _is_whole(second) and first != second
            ]
            if not usable:
                raise ValueError(f"the LM has ended none of its answers to {block} prompts: pretrain it for longer")
            yield from usable

    def _written(self, name: str, rng: random.Random) -> Iterator[tuple[Prompt, str, str]]:
        world = self.gold.world
        while True:
            prompt = draw_prompt(rng, Split.ID)
            if name == "good":
                first, second = (Author.draw(rng, quality).write(world, prompt, rng) for quality in (0.95, 0.7))
            else:
                first = Author.draw(rng, 0.8).write(world, prompt, rng)
                second = tamper(prompt, first, rng)
            yield prompt, first, second


def _is_whole(sample: Sample) -> bool:
    return sample.ended and bool(sample.text) and not any(word in SPECIALS for word in sample.text.split())


def tamper(prompt: Prompt, text: str, rng: random.Random) -> str:
    """An edit that a gullible reward model may like: repeat an item, stuff fillers, redraw values, redraw entities."""
    answer = Answer.parse(text)
    edit = int(rng.random() * 4)
    if edit == 0:
        items = (*answer.items, pick(rng, answer.items))
    else:
        items = tuple(_tamper_item(prompt, item, edit, rng) for item in answer.items)
    return dataclasses.replace(answer, items=items).text


def _tamper_item(prompt: Prompt, item: tuple[str, ...], edit: int, rng: random.Random) -> tuple[str, ...]:
    fact = stated_fact(item)
    if fact is None:
        return item
    start, (entity, value) = item[:-2], fact
    if edit == 1:
        return (pick(rng, FILLERS), pick(rng, FILLERS), entity, value)
    if edit == 2:
        return (*start, entity, pick(rng, RELATIONS[prompt.relation]))
    return (*start, pick(rng, ENTITIES), value)


def write_pairs(
    directory: Path,
    maker: PairMaker,
    *,
    train: int = 1000,
    test: int = 500,
    label_seed: int = 0,
    suffix: str = ".jsonl",
) -> None:
    """Write `train` and each of `TESTS` to a directory.

    Args:
        directory: made if it is not there.
        maker: draws the pairs.
        train: training pairs, with noisy labels: the first answer is chosen with probability sigmoid(2 x gap).
        test: pairs of each test set, with the gold's labels.
        label_seed: of the noise of the training labels alone.
        suffix: ".jsonl", or ".jsonl.gz" for compressed files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    seed = maker.gold.world.seed
    noise = stream(seed, maker.seed, "labels", label_seed)
    for name in tqdm((TRAIN, *TESTS), "pairs", unit="file"):
        pairs = maker.draw(name, train if name == TRAIN else test)
        rows = []
        for number, pair in enumerate(pairs):
            threshold = noise.random() if name == TRAIN else 0.5
            first_chosen = threshold < 1 / (1 + math.exp(-LABEL_SCALE * pair.gap))
            rows.append(pair.row(f"{name}-{number:05}", f"world-{seed}", first_chosen))
        write_rows(directory / f"{name}{suffix}", rows)


def write_rows(path: Path, rows: list[dict[str, str | float]]) -> None:
    """Write JSON lines, gzip-compressed if the name ends in .gz; the same rows give the same bytes."""
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def read_rows(path: Path) -> list[dict[str, str | float]]:
    """Read what `write_rows` wrote."""
    data = path.read_bytes()
    return [json.loads(line) for line in (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines()]
