"""Build a world's folder from nothing: `python -m grmlight.lab.build --seed 0 --out DIR`.

- `lm/`: the pretrained LM and tokenizer, a Hugging Face folder.
- `pairs/`: train.jsonl.gz, and a file for each test set.
- `world.json`: the seed, and the mean and deviation that standardize the gold.

With `--lm DIR` the LM is taken from there, and only the rest is made again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from transformers import LlamaForCausalLM

from grmlight.lab.gold import Gold
from grmlight.lab.pairs import PairMaker, write_pairs
from grmlight.lab.pretrain import Recipe, measure_gold, pretrain, save_lm, summary
from grmlight.lab.tokenizer import build_tokenizer
from grmlight.lab.world import World


def build_world(seed: int, directory: Path, recipe: Recipe | None = None, *, train: int = 1000, test: int = 500) -> str:
    """Pretrain a world's LM and draw its pairs.

    Args:
        seed: the world.
        directory: where its files go.
        recipe: how the LM is pretrained.
        train: training pairs.
        test: pairs of each test set.

    Returns a summary in words: the final loss, and the LM's gold beside the corpus'.
    """
    world = World(seed)
    model, losses = pretrain(world, recipe)
    save_lm(model, directory / "lm")
    gold = measure_gold(model, world)
    _draw(model, gold, directory, train, test)
    return summary(gold, losses)


def redraw_world(seed: int, lm: Path, directory: Path, *, train: int = 1000, test: int = 500) -> str:
    """Draw a world's pairs again from an LM that was pretrained before; the arguments are those of `build_world`."""
    model = LlamaForCausalLM.from_pretrained(lm).eval()
    shutil.copytree(lm, directory / "lm", dirs_exist_ok=True)
    gold = measure_gold(model, World(seed))
    _draw(model, gold, directory, train, test)
    return summary(gold)


def _draw(model: LlamaForCausalLM, gold: Gold, directory: Path, train: int, test: int) -> None:
    maker = PairMaker(gold, model, build_tokenizer())
    write_pairs(directory / "pairs", maker, train=train, test=test, suffix=".jsonl.gz")
    record = {"seed": gold.world.seed, "gold_mean": gold.mean, "gold_deviation": gold.deviation}
    (directory / "world.json").write_text(json.dumps(record, indent=2) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Build a world's folder."""
    parser = argparse.ArgumentParser(prog="python -m grmlight.lab.build", description="Build a world from nothing.")
    parser.add_argument("--seed", type=int, default=0, help="the world (default: 0)")
    parser.add_argument("--out", type=Path, required=True, help="where its folder goes")
    parser.add_argument("--lm", type=Path, help="the world's LM, if it has been pretrained before")
    options = parser.parse_args(arguments)
    if options.lm:
        print(redraw_world(options.seed, options.lm, options.out))
    else:
        print(build_world(options.seed, options.out))


if __name__ == "__main__":
    main()
