"""GoldReward: the embedded world's exact reward, used wherever a reward model is."""

from __future__ import annotations

from collections.abc import Sequence

from grmlight.data.texts import TextGroup, final_answer
from grmlight.lab.files import world_files


class GoldReward:
    """The gold of each answer, in standard deviations of the pretrained LM's answers to ID prompts.

    Args:
        world: seed of the world.
    """

    def __init__(self, world: int = 0) -> None:
        self.name = "gold" if world == 0 else f"gold-{world}"
        self._gold = world_files(world).gold

    def score(self, groups: Sequence[TextGroup]) -> list[list[float]]:
        """One reward a response. Errors: ValueError for a prompt that is none of the world's."""
        return [self._scores(group) for group in groups]

    def _scores(self, group: TextGroup) -> list[float]:
        prompt = group.prompt if isinstance(group.prompt, str) else group.prompt[-1]["content"]
        texts = [final_answer(response) for response in group.responses]
        return self._gold.scores([prompt] * len(texts), texts, group.ended or None).tolist()
