"""GoldReward: the embedded world's exact reward, used wherever a reward model is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from grmlight.data.texts import TextGroup, final_answer
from grmlight.lab.files import world_files, world_key
from grmlight.lab.world import Prompt


class GoldReward:
    """The gold of each answer, in standard deviations of the pretrained LM's answers to ID prompts.

    Args:
        world: seed of the world.

    Attributes:
        identity: tells it from every other gold: of the world's seed, the code that makes worlds, and the scale.
        refused: of the last call, the places of groups whose prompt is none of the world's, and that in words.
    """

    def __init__(self, world: int = 0) -> None:
        self.name = "gold" if world == 0 else f"gold-{world}"
        self._gold = world_files(world).gold
        self.identity = f"world {world_key(world)} {self._gold.mean} {self._gold.deviation}"
        self.refused: dict[int, str] = {}

    def score(self, groups: Sequence[TextGroup]) -> list[list[float]]:
        """One reward a response; NaN for all responses to a prompt that is none of the world's."""
        prompts = [_prompt(group) for group in groups]
        self.refused = {place: "no prompt of the embedded world" for place, each in enumerate(prompts) if each is None}
        return [
            [math.nan] * len(group.responses) if prompt is None else self._scores(prompt, group)
            for prompt, group in zip(prompts, groups, strict=True)
        ]

    def _scores(self, prompt: Prompt, group: TextGroup) -> list[float]:
        texts = [final_answer(response) for response in group.responses]
        return self._gold.scores([prompt] * len(texts), texts, group.ended or None).tolist()


def _prompt(group: TextGroup) -> Prompt | None:
    text = group.prompt if isinstance(group.prompt, str) else group.prompt[-1]["content"]
    try:
        return Prompt.parse(text)
    except ValueError:
        return None
