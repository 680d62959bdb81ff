"""Constrained PPO: no more of each reward than is good (Moskovitz et al. 2023, arXiv 2310.04373).

What each variant optimizes, with v the mean reward of an answer, theta its threshold and alpha its weight:

- `mu`: stay close to the reference, subject to v_i >= theta_i.
- `xi`: stay close to the reference, subject to v_i = theta_i.
- `all`: sum of alpha_i v_i, subject to v_i <= theta_i.
- `sat`: minus the sum of alpha_i (r_i - theta_i)^2 of each answer; no multipliers.

Shape suffixes: L answer tokens, N answers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from jaxtyping import Float
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor

from grmlight.policy.constraints.multiplier import Bound, Descent, Multiplier
from grmlight.policy.constraints.saturation import Patience, Saturation
from grmlight.policy.constraints.thresholds import read_thresholds
from grmlight.policy.online.mixing import KL, Minibatch, Mixer

logger = logging.getLogger(__name__)

Variant = Literal["mu", "xi", "all", "sat"]
_BOUNDS: dict[str, Bound] = {"mu": "at_least", "xi": "equal", "all": "at_most"}


class Constraints(Mixer):
    """Keeps every reward at its threshold by a multiplier of its own.

    The advantage is `(N - sum of |s_i|) A_0 + sum of s_i A_i` over N constraints, s_i the squashed multiplier; with
    `all` the constraints are upper bounds, so their A_i enter with a minus. The task's A_0 is the KL reward's in `mu`
    and `xi`, where the KL coefficient does not enter; in `all` the weighted sum of all rewards and the KL at its
    coefficient. No reward is standardized: thresholds and violations are in its own units.

    The paper writes s_i for |s_i|. Both are the same but where an equality holds a reward down (s_i < 0): there its
    task would weigh up to 2 N against a pull of at most 1, and a threshold a little below the reference's reward would
    be out of reach.

    Args:
        thresholds: a number for each reward's name, or the YAML file of `grmlight proxy-points`. Every reward has one.
            None where `ThresholdSearch` finds them; then the first ones are what the first answers are worth.
        variant: what is optimized.
        weights: alpha of `all` and `sat`, by name; 1 for rewards that are not named.
        multipliers: how they move.
        patience: when a saturated multiplier is warned of.

    Attributes:
        searched: whether a search sets the thresholds.
        values: what the last batch returned, by name.

    Errors: ValueError for thresholds that cannot be read, and weights where none are used.
    """

    def __init__(
        self,
        thresholds: str | dict[str, float] | None = None,
        variant: Variant = "xi",
        weights: dict[str, float] | None = None,
        multipliers: Descent | None = None,
        patience: Patience | None = None,
    ) -> None:
        if variant not in ("mu", "xi", "all", "sat"):
            raise ValueError(f"constraints: variant must be 'mu', 'xi', 'all' or 'sat', got {variant!r}")
        if weights and variant in _BOUNDS and variant != "all":
            raise ValueError(f"constraints: variant {variant!r} has no weights, its task is the KL; remove them")
        self.variant: Variant = variant
        self.searched = False
        self.values: dict[str, float] = {}
        self.thresholds = {} if thresholds is None else read_thresholds(thresholds)
        if thresholds is not None and (unknown := sorted((weights or {}).keys() - self.thresholds.keys())):
            raise ValueError(f"constraints: weights for {', '.join(unknown)}, which have no threshold")
        self.weights = {name: (weights or {}).get(name, 1.0) for name in self.thresholds}
        self._descent, self._patience = multipliers or Descent(), patience or Patience()
        self.multipliers: dict[str, Multiplier] = {}
        self._saturations: dict[str, Saturation] = {}
        self._constrain(self.thresholds)

    @property
    def name(self) -> str:
        """The variant, for curves."""
        return self.variant

    def setup(self, names: Sequence[str]) -> None:
        """Errors: ValueError for a threshold of no reward, and a reward of no threshold."""
        if self.searched:
            self._constrain(sorted(set(names) - {KL}))
            return
        if not self.thresholds:
            raise ValueError("constraints: there are no thresholds; give them, or let ThresholdSearch find them")
        rewards = set(names) - {KL}
        if unknown := sorted(self.thresholds.keys() - rewards):
            raise ValueError(
                f"constraints: thresholds for {', '.join(unknown)}, and the rewards are {', '.join(sorted(rewards))}"
            )
        if lacking := sorted(rewards - self.thresholds.keys()):
            raise ValueError(f"constraints: no threshold for {', '.join(lacking)}; give one, or remove the reward")

    def shape(self, rewards: Mapping[str, Float[Tensor, " N"]]) -> dict[str, Float[Tensor, " N"]]:
        """`sat` optimizes minus the squared distance of each answer's reward; the others the rewards themselves."""
        if self.variant != "sat":
            return dict(rewards)
        return {name: -((values_N - self.thresholds[name]) ** 2) for name, values_N in rewards.items()}

    def update(self, reward_to_go: Mapping[str, float]) -> dict[str, float]:
        """One step of every multiplier, with warnings by name.

        Errors: ValueError that names a reward that is not finite; no multiplier has moved then.
        """
        for name in self.multipliers:
            if not math.isfinite(value := reward_to_go[name]):
                raise ValueError(
                    f"constraints: reward {name!r} is {value} on the mean of a batch; its multiplier would be lost"
                )
        self.values = {name: value for name, value in reward_to_go.items() if name != KL}
        if self.searched and not self.thresholds:
            self.thresholds = dict(self.values)
        figures = {}
        for name, threshold in self.thresholds.items():
            figures[f"{name}_threshold"] = threshold
            if (multiplier := self.multipliers.get(name)) is None:
                continue
            value = reward_to_go[name]
            multiplier.update(value, threshold)
            figures |= {f"{name}_multiplier": multiplier.value, f"{name}_squashed": multiplier.squashed}
            self._watch(name, value)
        return figures

    def mix(self, advantages: Mapping[str, Float[Tensor, " L"]], batch: Minibatch) -> Float[Tensor, " L"]:
        """The mixed advantage of each token."""
        weighted_L = sum(weight * advantages[name] for name, weight in self.weights.items())
        penalized_L = batch.kl_coefficient * advantages[KL] + weighted_L
        if self.variant == "sat":
            return penalized_L
        task_L, sign = (penalized_L, -1) if self.variant == "all" else (advantages[KL], 1)
        squashed = {name: each.squashed for name, each in self.multipliers.items()}
        constrained_L = sum(s * advantages[name] for name, s in squashed.items())
        return math.fsum(1 - abs(s) for s in squashed.values()) * task_L + sign * constrained_L

    def move(self, thresholds: Mapping[str, float]) -> None:
        """Aim at other thresholds from now on; multipliers go on from where they are."""
        assert thresholds.keys() == self.multipliers.keys()
        self.thresholds = dict(thresholds)

    def finish(self) -> None:
        """Warn by name of constraints that are violated; a search has put another policy back."""
        for name, saturation in self._saturations.items():
            warning = saturation.unmet(self.multipliers[name].bound == "equal")
            if warning and not self.searched:
                _warn(warning)

    def state_dict(self) -> dict[str, Any]:
        """All multipliers, by the name of their reward."""
        return {
            name: {"multiplier": each.state_dict(), "saturation": self._saturations[name].state_dict()}
            for name, each in self.multipliers.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there.

        Errors: ValueError for a state of other constraints.
        """
        if state.keys() != self.multipliers.keys():
            raise ValueError(
                f"the checkpoint has multipliers of {', '.join(state) or 'nothing'}, the constraints are of "
                f"{', '.join(self.multipliers) or 'nothing'}; go on with the constraints that it was trained with"
            )
        for name, each in state.items():
            self.multipliers[name].load_state_dict(each["multiplier"])
            self._saturations[name].load_state_dict(each["saturation"])

    def _constrain(self, names: Iterable[str]) -> None:
        if bound := _BOUNDS.get(self.variant):
            self.multipliers = {name: Multiplier(bound, self._descent) for name in names}
            self._saturations = {name: Saturation(name, self._patience) for name in names}

    def _watch(self, name: str, value: float) -> None:
        multiplier, threshold = self.multipliers[name], self.thresholds[name]
        slack = multiplier.slack(value, threshold)
        self._saturations[name].note(slack)
        violation = abs(slack) if multiplier.bound == "equal" else max(-slack, 0.0)
        warnings = [self._saturations[name].watch(multiplier.squashed, violation, threshold, value)]
        # A search moves thresholds before they are met, and tells of each in its vertices.
        if not self.searched:
            warnings.append(self._saturations[name].missed(multiplier.squashed, multiplier.bound == "equal"))
        for warning in filter(None, warnings):
            _warn(warning)


@rank_zero_only
def _warn(text: str) -> None:
    logger.warning("%s", text)
