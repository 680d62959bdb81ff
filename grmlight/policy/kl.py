"""KL of a policy to its reference, estimated from what the policy samples; proxy and gold beside it.

For an answer sampled from the policy, with `log_ratio = log pi - log reference` of each token: the k1 of its tokens is
unbiased for the KL and may be negative; k3 is unbiased too, never negative, and varies less where both are close;
k2 is half the square, biased, and not to be trusted beyond a few nats. Source: Schulman 2020, "Approximating KL
Divergence".

Shape suffixes: L response tokens, N responses.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from grmlight.data.encode import pack
from grmlight.data.set_prompts import distinct, set_prompts
from grmlight.data.tokenizer import load_tokenizer
from grmlight.evaluation.curves import CurvePoint, plot_curves, write_curves
from grmlight.evaluation.group_scorer import TOKENS_PER_FORWARD, GroupScorer
from grmlight.evaluation.ranks import from_all_ranks
from grmlight.evaluation.run_report import run_directory
from grmlight.models import Signal, evaluating
from grmlight.models.parallel import reshard
from grmlight.policy.huggingface import HuggingFaceSampler
from grmlight.policy.ranks import AllRanks
from grmlight.policy.rewards import checked_scores, open_reward
from grmlight.policy.rollouts import PromptText, Rollout
from grmlight.policy.sampler import SamplingOptions
from grmlight.training.checkpoints import Checkpoints

logger = logging.getLogger("grmlight")

Estimator = Literal["k1", "k2", "k3"]


def k1(logps_L: Float[Tensor, " L"], reference_logps_L: Float[Tensor, " L"]) -> Float[Tensor, " L"]:
    """The log-ratio of each token, in nats."""
    return logps_L - reference_logps_L


def k2(logps_L: Float[Tensor, " L"], reference_logps_L: Float[Tensor, " L"]) -> Float[Tensor, " L"]:
    """Half the squared log-ratio of each token. The curves of Coste et al. 2023 are drawn over it."""
    return 0.5 * (logps_L - reference_logps_L).square()


def k3(logps_L: Float[Tensor, " L"], reference_logps_L: Float[Tensor, " L"]) -> Float[Tensor, " L"]:
    """`exp(-log_ratio) - 1 + log_ratio` of each token, at least 0."""
    log_ratio_L = logps_L - reference_logps_L
    return torch.expm1(-log_ratio_L) + log_ratio_L


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
"""By name."""

_BOTH = frozenset({Signal.LOGPS, Signal.REFERENCE_LOGPS})


def sampled_kl(model: nn.Module, rollouts: Sequence[Rollout], forwards: int) -> dict[str, Float[np.ndarray, " N"]]:
    """The KL that each answer of the policy stands for, by estimator: summed over its tokens, in nats, float64.

    Args:
        model: the policy that sampled the answers, called as a `PolicyModel` is; it must know its reference.
        rollouts: one or more prompts with their answers.
        forwards: so many forwards share the prompts; ranks that share a model all give the same number.
    """
    device = next(model.parameters()).device
    found: dict[str, list[Tensor]] = {name: [] for name in ESTIMATORS}
    with torch.no_grad(), evaluating(model):
        for some in np.array_split(np.arange(len(rollouts)), forwards):
            # A rank with fewer prompts than forwards runs one of them again.
            batch = pack([rollouts[index].token_group() for index in (some if len(some) else [0])]).to(device)
            outputs = model(batch, _BOTH)
            logps = (outputs.logps_L.double(), outputs.reference_logps_L.double())
            for name, estimator in ESTIMATORS.items():
                sums_N = batch.sum_by_response(estimator(*logps))
                found[name].append(sums_N if len(some) else sums_N[:0])
    if isinstance(model, FSDPModule):
        reshard(model)
    return {name: torch.cat(values).cpu().numpy() for name, values in found.items()}


@dataclasses.dataclass(frozen=True)
class Measured:
    """One prompt's answers.

    Attributes:
        number: the prompt's place.
        rollout: the prompt and the answers.
        kl: of each answer, by estimator.
        rewards: of each answer, `proxy` and `gold` where they are given.
    """

    number: int
    rollout: Rollout
    kl: dict[str, list[float]]
    rewards: dict[str, list[float]]

    @property
    def means(self) -> dict[str, float]:
        """Over the answers, by name: the estimators, `tokens`, `ended`, and the rewards where they are finite."""
        answers = self.rollout.answers
        found = {"tokens": [len(each.tokens) for each in answers], "ended": [each.ended for each in answers]}
        means = {name: float(np.mean(values)) for name, values in {**self.kl, **found}.items()}
        return means | {name: finite_mean(values) for name, values in self.rewards.items()}


def finite_mean(values: Sequence[float] | np.ndarray) -> float:
    """The mean of what is finite; NaN if nothing is."""
    whole = np.asarray(values, dtype=np.float64)
    whole = whole[np.isfinite(whole)]
    return float(whole.mean()) if len(whole) else math.nan


class Watcher(Protocol):
    """What looks at each measurement; on every rank, which all have the same. See `grmlight.policy.guards`."""

    def look(self, trainer: Trainer, prompts: Sequence[Measured]) -> None:
        """Take it in."""
        ...

    def keep(self, trainer: Trainer) -> None:
        """Write checkpoints, if any: every watcher has looked, none has acted."""
        ...

    def act(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the run, or change its weights, if need be."""
        ...


class SampledKL(Callback):
    """Measures, inside the epoch, how far the policy is from its reference, and what it has gained by that.

    At the start, every so many steps and at the end it samples answers to some prompts, and logs `policy/kl_k1`,
    `kl_k2`, `kl_k3` (nats an answer), `tokens`, `ended`, and `proxy` and `gold` where they are given. The points are
    kept as `curve.jsonl` and `curve.png` in the run directory, and in checkpoints. Ranks share the prompts; the same
    answers are drawn whatever their number. The start model is held in memory, as a frozen copy where nothing else
    gives it (adapters are switched off instead).

    Args:
        every_n_steps: optimizer steps between two measurements.
        prompts: so many distinct prompts, the first ones of the set.
        set: the set of the DataModule that they are taken from; the first evaluation set by default, or else "train".
        samples: answers to each prompt.
        max_new_tokens: longest answer.
        temperature: of the sampling. At any other than 1 the KL is that of answers which the policy does not give.
        proxy: reward that is optimized, where there is one: see `grmlight.policy.rewards.open_reward`.
        gold: reward that stands for people.
        estimator: what stands as the KL in `curve.jsonl`.
        limit: a KL (k1, nats) above it, or one that is not finite, ends the run with an error and a checkpoint.
        seed: of the sampling, the same at each measurement.
        study, method: what the curve is called; `method` is the objective or the algorithm by default.
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        prompts: int = 64,
        set: str | None = None,  # noqa: A002 - a set is what the data calls it
        samples: int = 1,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        proxy: str | None = None,
        gold: str | None = None,
        estimator: Estimator = "k1",
        limit: float = 1000.0,
        seed: int = 0,
        study: str = "alignment",
        method: str | None = None,
    ) -> None:
        super().__init__()
        if every_n_steps < 1 or prompts < 1:
            raise ValueError(f"SampledKL: every_n_steps and prompts must be at least 1, got {every_n_steps}, {prompts}")
        if estimator not in ESTIMATORS:
            raise ValueError(f"SampledKL: estimator must be one of {', '.join(ESTIMATORS)}, got {estimator!r}")
        if not limit > 0:
            raise ValueError(f"SampledKL: limit must be above 0, got {limit}")
        self.every_n_steps, self.prompts, self.set = every_n_steps, prompts, set
        self.options = SamplingOptions(samples, max_new_tokens, temperature)
        self.rewards = {name: spec for name, spec in (("proxy", proxy), ("gold", gold)) if spec is not None}
        self.estimator, self.limit, self.seed = estimator, limit, seed
        self.study, self.method = study, method
        self.points: list[CurvePoint] = []
        self.watchers: list[Watcher] = []
        self._scorers: dict[str, GroupScorer] = {}
        self._candidates: list[PromptText] = []
        self._texts: list[PromptText] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the prompts and open the rewards, before the model is built.

        Errors: ValueError in one line for a set or reward that is not there, and for a module that is no policy.
        """
        if stage != "fit":
            return
        if not hasattr(pl_module, "keep_reference") and not hasattr(pl_module, "sampler"):
            raise ValueError(f"SampledKL: a {type(pl_module).__name__} samples nothing; use it with a policy")
        self._candidates, self._texts = distinct(_prompts(getattr(trainer, "datamodule", None), self.set)), []
        self._scorers = {name: open_reward(spec) for name, spec in self.rewards.items()}
        if (keep := getattr(pl_module, "keep_reference", None)) is not None:
            keep()

    def state_dict(self) -> dict[str, Any]:
        """The points so far."""
        return {"points": [dataclasses.asdict(point) for point in self.points]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from them."""
        self.points = [CurvePoint(**point) for point in state_dict["points"]]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Where it begins; a resumed run goes on as if it had not stopped."""
        if not self.points or self._is_due(trainer):
            self._measure(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure where it is time and a step is complete; with several steps a batch, at the batch's end."""
        if pl_module.automatic_optimization and batch.micro_batch + 1 < batch.packs:
            return
        if self._is_due(trainer):
            self._measure(trainer, pl_module)

    def _is_due(self, trainer: Trainer) -> bool:
        return trainer.global_step // self.every_n_steps > (self.points[-1].step or 0) // self.every_n_steps

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Where it ends."""
        self._measure(trainer, pl_module)
        directory = run_directory(trainer)
        if directory is not None and trainer.is_global_zero:
            plot_curves(self.points, directory / "curve.png")

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.points and self.points[-1].step == trainer.global_step:
            return
        if meter := getattr(pl_module, "meter", None):
            meter.pause()
        with trainer.precision_plugin.forward_context():
            found = self._sample(trainer, pl_module)
        self._tell(trainer, found)
        names = list(found[0].means)
        values = {name: np.array([each.means[name] for each in found]) for name in names}
        self._keep(trainer, pl_module, values)
        for watcher in self.watchers:
            watcher.look(trainer, found)
        for watcher in self.watchers:
            watcher.keep(trainer)
        for watcher in self.watchers:
            watcher.act(trainer, pl_module)
        if meter:
            meter.clock.start()
        if not trainer.should_stop:
            self._check(trainer, float(values["k1"].mean()))

    def _sample(self, trainer: Trainer, pl_module: LightningModule) -> list[Measured]:
        """The prompts' answers, measured: those of all ranks, in the order of the prompts."""
        datamodule: Any = getattr(trainer, "datamodule", None)
        model: Any = pl_module.model
        sampler = HuggingFaceSampler(
            model,
            load_tokenizer(datamodule.tokenizer, datamodule.options.chat_template),
            datamodule.options,
            progress=trainer.progress_bar_callback is not None,
        )
        self._texts = self._texts or self._choose(trainer, sampler)
        ranks = trainer.world_size
        share = -(-len(self._texts) // ranks)
        numbers = [number % len(self._texts) for number in range(trainer.global_rank, share * ranks, ranks)]
        texts = [self._texts[number] for number in numbers]
        groups = AllRanks(trainer).together(lambda: sampler.generate(texts, self.options, self.seed, numbers)).groups
        longest = max(len(group.prompt_tokens) for group in groups) + self.options.samples * self.options.max_new_tokens
        forwards = from_all_ranks([-(-share // max(1, TOKENS_PER_FORWARD // longest))])
        kl = sampled_kl(model, groups, max(forwards))
        rewards = {name: self._score(trainer, name, scorer, groups) for name, scorer in self._scorers.items()}
        found = []
        for place, (number, group) in enumerate(zip(numbers, groups, strict=True)):
            own = slice(place * self.options.samples, (place + 1) * self.options.samples)
            own_kl = {name: values[own].tolist() for name, values in kl.items()}
            own_rewards = {name: [float(each) for each in scores[place]] for name, scores in rewards.items()}
            found.append(Measured(number, group, own_kl, own_rewards))
        once = {each.number: each for each in from_all_ranks(found)}
        return [once[number] for number in sorted(once)]

    def _choose(self, trainer: Trainer, sampler: HuggingFaceSampler) -> list[PromptText]:
        """The first prompts that leave the model room for an answer; the others before them are counted and named.

        Errors: ValueError if there are none.
        """
        texts: list[PromptText] = []
        refused: list[tuple[PromptText, str]] = []
        for start in range(0, len(self._candidates), self.prompts):
            some = self._candidates[start : start + self.prompts]
            reasons = sampler.refused(some, self.options)
            for place, prompt in enumerate(some[: self.prompts]):
                if len(texts) == self.prompts:
                    break
                if place in reasons:
                    refused.append((prompt, reasons[place]))
                else:
                    texts.append(prompt)
        said = (
            f"{len(refused)} prompts are left out, the first is {str(refused[0][0])[:60]!r}: {refused[0][1]}"
            if refused
            else ""
        )
        if not texts:
            raise ValueError(f"SampledKL: {said or 'there is no prompt'}; lower max_new_tokens, or choose another set")
        if said and trainer.is_global_zero:
            logger.warning("SampledKL: %s", said)
        return texts

    def _score(self, trainer: Trainer, name: str, scorer: GroupScorer, groups: Sequence[Rollout]) -> list[list[float]]:
        """A reward's values of this rank's answers.

        Errors: ValueError on every rank for a reward that fails on one of them; a checkpoint of this step is there.
        """
        try:
            return AllRanks(trainer).together(lambda: checked_scores(scorer, [each.text_group() for each in groups]))
        except ValueError as error:
            kept = self._keep_checkpoint(trainer)
            raise ValueError(
                f"step {trainer.global_step}: SampledKL's {name} {self.rewards[name]!r} failed ({error}){kept}; mend "
                "it, and go on from there"
            ) from error

    def _tell(self, trainer: Trainer, found: Sequence[Measured]) -> None:
        """Count and name the answers that a reward has no finite value for."""
        for name in self._scorers if trainer.is_global_zero else ():
            bad = [each for each in found for value in each.rewards[name] if not math.isfinite(value)]
            if bad:
                total = sum(len(each.rewards[name]) for each in found)
                logger.warning(
                    "step %d: %s %r is not finite for %d of %d answers, which its mean leaves out; the first to %r",
                    *(trainer.global_step, name, self.rewards[name], len(bad), total, str(bad[0].rollout.prompt)[:60]),
                )

    def _keep(self, trainer: Trainer, pl_module: LightningModule, values: dict[str, np.ndarray]) -> None:
        """Log the means over prompts, and add the point."""
        rewards = self._scorers.keys()
        means = {name: finite_mean(each) if name in rewards else float(each.mean()) for name, each in values.items()}
        named = {f"policy/kl_{name}" if name in ESTIMATORS else f"policy/{name}": each for name, each in means.items()}
        for each in trainer.loggers:
            each.log_metrics(named, step=trainer.global_step)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in named.items()})
        gold = values.get("gold", np.zeros(0))
        gold = gold[np.isfinite(gold)]
        point = CurvePoint(
            study=self.study,
            method=self.method or getattr(pl_module, "curve_method", type(pl_module).__name__),
            seed=getattr(pl_module, "seed", 0),
            step=trainer.global_step,
            n=None,
            beta=getattr(pl_module, "curve_beta", None),
            kl=means[self.estimator],
            kl_estimator=self.estimator,
            proxy=means.get("proxy", math.nan),
            gold=means.get("gold", math.nan),
            standard_error=float(np.std(gold, ddof=1) / math.sqrt(len(gold))) if len(gold) > 1 else math.nan,
        )
        self.points.append(point)
        directory = run_directory(trainer)
        if directory is not None and trainer.is_global_zero:
            write_curves(directory / "curve.jsonl", self.points)

    def _check(self, trainer: Trainer, kl: float) -> None:
        """Stop where the policy has left its reference for good; what it was is kept."""
        if kl <= self.limit:
            return
        raise ValueError(
            f"step {trainer.global_step}: the KL to the reference is {kl:.4g} nats an answer, above SampledKL's limit "
            f"of {self.limit:g}{self._keep_checkpoint(trainer)}; raise beta, lower the learning rate, or go on from an "
            "earlier checkpoint"
        )

    def _keep_checkpoint(self, trainer: Trainer) -> str:
        """Keep this step; where, in words."""
        kept = ""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, Checkpoints) and callback.save_last and trainer.global_step > 0:
                callback.keep(trainer)
                kept = f"; this step is kept in {callback.last_model_path}"
        return kept


def _prompts(datamodule: Any, wanted: str | None) -> list[PromptText]:
    """The prompts of a set of pairs or of prompts; by default of the first that is not trained on."""
    pairs = hasattr(datamodule, "prepared")
    sets: Any = datamodule.prepared if pairs else getattr(datamodule, "prompts", None)
    if not isinstance(sets, dict) or not sets:
        raise ValueError("SampledKL: samples from the prompts of a PairDataModule or PromptDataModule; train with one")
    name = wanted or next((each for each in sets if each != "train"), "train")
    if name not in sets:
        raise ValueError(f"SampledKL: there is no set {name!r}; choose from {', '.join(sets)}")
    return set_prompts(sets[name]) if pairs else sets[name]
