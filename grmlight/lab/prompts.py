"""WorldPrompts: the embedded world's prompts as a DataModule, for policies."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from grmlight.lab.files import world_files
from grmlight.lab.words import stream
from grmlight.lab.world import Split, draw_prompt
from grmlight.policy.prompts import PromptDataModule
from grmlight.policy.read_prompts import NumberedPrompt

_MOST_DRAWS = 100_000


class WorldPrompts(PromptDataModule):
    """Prompts of an embedded world, each once; those for validation are no others' and do not depend on the number.

    Args:
        world: seed of the world; its tokenizer reads the prompts.
        prompts: training prompts.
        val_prompts: validation prompts.
        split: which prompts: "id", as reward models learn from, "ood_topic", "ood_template", "ood_all" or "any".
        max_new_tokens: room for an answer.
        prompts_per_step: prompts of one optimizer step, over all devices.
        eval_prompts: prompts of one evaluation step, over all devices.
        seed: of the training order.
    """

    def __init__(
        self,
        world: int = 0,
        prompts: int = 256,
        val_prompts: int = 64,
        split: Split = Split.ID,
        max_new_tokens: int = 64,
        prompts_per_step: int = 16,
        eval_prompts: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(
            max_new_tokens=max_new_tokens, prompts_per_step=prompts_per_step, eval_prompts=eval_prompts, seed=seed
        )
        self.world, self.split = world, Split(split)
        self.counts = {"train": prompts, "val": val_prompts}

    @property
    def sets(self) -> dict[str, str]:
        """Both are drawn from the world; a set of no prompts is none."""
        return {name: f"world {self.world}, {self.split}" for name, count in self.counts.items() if count}

    def setup(self, stage: str | None = None) -> None:
        """Draw them."""
        self.tokenizer = str(world_files(self.world).tokenizer)
        super().setup(stage)

    def read(self, name: str, source: str) -> list[NumberedPrompt]:
        """A set. Errors: ValueError if the split has fewer prompts."""
        first = 0 if name == "val" else self.counts["val"]
        wanted = self.counts[name]
        found = list(itertools.islice(distinct_prompts(self.world, self.split), first, first + wanted))
        if len(found) < wanted:
            raise ValueError(f"{source} has {first + len(found)} prompts, not {first + wanted}; ask for fewer")
        return [NumberedPrompt(row, prompt) for row, prompt in enumerate(found, 1)]


def distinct_prompts(world: int, split: Split) -> Iterator[str]:
    """The prompts of a split in a random order, as `draw_prompt` draws them first."""
    rng = stream(world, "prompts", split.value)
    texts = (draw_prompt(rng, split).text for _ in range(_MOST_DRAWS))
    return iter(dict.fromkeys(texts))
