"""Rewards that are adapters on the policy's own backbone: opened before it is built, loaded onto it once it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grmlight.data.texts import TextGroup
from grmlight.data.tokenizer import load_tokenizer
from grmlight.evaluation.group_scorer import ModelScorer
from grmlight.export import load_options
from grmlight.models import BackboneConfig, LoraOptions, PolicyModel
from grmlight.models.shared_reward import SharedReward, find_shared


class Guest:
    """A reward on the policy's backbone; it scores as the `ModelScorer` of its folder does.

    Args:
        spec: a folder with a reward model's adapter, as `grmlight export --format adapter` writes it.
        backbone: the policy's.

    Attributes:
        name: what it is called in reports.
        lora: the shape of its adapters.

    Raises:
        ValueError: one line for what cannot share this backbone, and for another tokenizer than its base model's.
    """

    def __init__(self, spec: str, backbone: BackboneConfig) -> None:
        self.name = spec
        if not Path(spec).is_dir():
            raise ValueError(f"reward {spec!r}: there is no such folder of an adapter; check it, or drop share")
        folder = Path(spec)
        self._found = find_shared(folder, backbone)
        assert self._found.backbone.lora is not None
        self.lora: LoraOptions = self._found.backbone.lora
        self._options = load_options(folder)
        self._tokenizer = load_tokenizer(spec, self._options.chat_template)
        _check_tokenizer(spec, self._tokenizer, backbone.name)
        self._scorer: ModelScorer | None = None

    def attach(self, policy: PolicyModel) -> None:
        """Load the adapter onto the policy's backbone, which is on its device and sharded if it is to be.

        Errors: ValueError names tensors that do not fit.
        """
        model = SharedReward(self._found, policy)
        self._scorer = ModelScorer(model, self._tokenizer, self._options, self.name, progress=False)

    def score(self, groups: Sequence[TextGroup]) -> list[list[float]]:
        """See `ModelScorer.score`; ranks that share the policy all call."""
        assert self._scorer is not None
        return self._scorer.score(groups)

    @property
    def refused(self) -> Mapping[int, str]:
        """See `ModelScorer`."""
        return {} if self._scorer is None else self._scorer.refused


def _check_tokenizer(spec: str, tokenizer: Any, base: str) -> None:
    """Refuse a tokenizer that reads text in another way than the base model's; a pad token of its own does not."""
    theirs, bases = _reading(tokenizer), _reading(load_tokenizer(base))
    added = theirs.pop("added"), bases.pop("added")
    if theirs != bases or not added[1].items() <= added[0].items():
        raise ValueError(
            f"reward {spec!r}: its tokenizer is another than that of base model {base!r}, which it would share with "
            "the policy; drop share"
        )


def _reading(tokenizer: Any) -> dict[str, Any]:
    """What decides how a fast tokenizer reads text; tokens that it has beside its vocabulary are "added"."""
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    added = {each["content"]: each["id"] for each in whole["added_tokens"]}
    return {name: whole[name] for name in ("model", "normalizer", "pre_tokenizer")} | {"added": added}
