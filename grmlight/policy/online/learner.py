"""Learner: what OnlineModule does with answers once they are rewarded: advantages, packs, losses, optimizer steps.

All ranks hold all rollouts of an iteration; forwards are what is shared out. So losses do not depend on the ranks.

Shape suffixes: N answers, L answer tokens, K streams of rewards.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from grmlight.evaluation.group_scorer import GroupScorer
from grmlight.evaluation.pair_figures import PairValues
from grmlight.models import PolicyModel, Signal, evaluating
from grmlight.models.parallel import reshard
from grmlight.module import GroupModule
from grmlight.policy.online.advantages import Advantage, whiten
from grmlight.policy.online.controllers import KlController, KlOptions
from grmlight.policy.online.experience import SCORE, Experience, Streams, separate_rewards, streams, token_rewards
from grmlight.policy.online.minibatches import Chosen, Pack, Packer, minibatches
from grmlight.policy.online.mixing import KL, Minibatch, Mixer
from grmlight.policy.online.objective import Targets, targets, terms
from grmlight.policy.online.options import Update
from grmlight.policy.ranks import AllRanks
from grmlight.policy.rollouts import Rollout
from grmlight.training.seeding import mixed_seed, seed_dropout


class Learner(GroupModule):
    """Base of `OnlineModule`: an iteration's optimizer steps.

    Attributes:
        advantage: how answers are compared.
        kl: how the policy is held to its reference.
        update: how it learns from an iteration's answers.
        mixing: what mixes the advantages of several rewards, if not an aggregator their values.
        rewards: what was opened, by name.
        controller: of the KL coefficient.
        iterations: done so far.
    """

    advantage: Advantage
    kl: KlOptions
    update: Update
    mixing: Mixer | None
    rewards: dict[str, GroupScorer]
    controller: KlController
    iterations: int

    @property
    def stream_names(self) -> list[str]:
        """What has advantages of its own, and with "gae" a value head."""
        return [SCORE] if self.mixing is None else [KL, *self.rewards]

    @property
    def steps_per_iteration(self) -> int:
        """Optimizer steps on one iteration's answers."""
        return self.update.epochs * self.update.minibatches

    def _streams(self, experience: Experience) -> Streams:
        """Advantages and returns of the score, or of each reward where they are mixed."""
        if self.mixing is not None:
            shaped = dict(self.mixing.shape(experience.rewards))
            rewards = separate_rewards(dataclasses.replace(experience, rewards=shaped))
        else:
            rewards = token_rewards(experience, self.controller.coefficient if self.kl.where == "reward" else 0.0)
        update = self.update
        return streams(experience, rewards, self.advantage, update.gamma, update.lam, update.spread)

    @torch.no_grad()
    def _forward_all(self, rollouts: tuple[Rollout, ...]) -> list[Float[Tensor, " L"]]:
        """Log-probs under policy and reference, and the critic's values, of every answer token; float64, on the CPU."""
        assert isinstance(self.model, PolicyModel)
        packer = self._packer(rollouts)
        packs = packer.packs(range(len(rollouts)))
        signals = self._signals | {Signal.REFERENCE_LOGPS}
        tokens = sum(len(answer.tokens) for rollout in rollouts for answer in rollout.answers)
        rows = 2 + (len(self.stream_names) if Signal.VALUES in signals else 0)
        found = torch.zeros(rows, tokens, dtype=torch.float64)
        with evaluating(self.model):
            for pack in packs:
                outputs = self(pack.batch.to(self.device), signals)
                values = [] if outputs.values_KL is None else [*outputs.values_KL]
                parts = torch.stack([outputs.logps_L, outputs.reference_logps_L, *values])  # pyright: ignore[reportCallIssue, reportArgumentType]
                counted = pack.count_L > 0
                found[:, pack.places_L[counted]] = parts.double().cpu()[:, counted]
        if isinstance(self.model, FSDPModule):
            reshard(self.model)
        return [*self._ranks_now.add_up(found)]

    def _update_mixing(self, experience: Experience, told: Streams) -> dict[str, float]:
        """Tell the mixer what the answers returned; its figures."""
        if self.mixing is None:
            return {}
        known_N = experience.known_N
        returned = {name: values_N[known_N].mean().item() for name, values_N in told.returned_N.items()}
        return {f"mixing_{name}": value for name, value in self.mixing.update(returned).items()}

    def _learn(self, experience: Experience, told: Streams) -> None:
        """All optimizer steps on an iteration's answers."""
        packer = self._packer(experience.rollouts)
        for epoch in range(self.update.epochs):
            seed = mixed_seed(self.seed, self.iterations, 2 + epoch)
            for prompts in minibatches(len(experience.rollouts), self.update.minibatches, seed):
                self._step(experience, told, packer, prompts.tolist())

    def _step(self, experience: Experience, told: Streams, packer: Packer, prompts: Sequence[int]) -> None:
        """One optimizer step on the answers to some prompts. One without any reward leaves everything as it is."""
        chosen = Chosen.of(experience, prompts)
        optimizer: Any = self.optimizers()
        optimizer.zero_grad(set_to_none=True)
        if chosen.known_N.any():
            advantage_L = self._advantages(experience, told, chosen)
            target = targets(experience, told, chosen, advantage_L, self.update)
            self._accumulate(packer.packs(prompts), target, prompts)
            raw = self.trainer.optimizers[0]
            self.configure_gradient_clipping(raw, self.update.max_gradient_norm, "norm")
        with self._memory_errors():
            optimizer.step()
        scheduler: Any = self.lr_schedulers()
        scheduler.step()

    def _advantages(self, experience: Experience, told: Streams, chosen: Chosen) -> Float[Tensor, " L"]:
        """The advantage of each chosen token."""
        known_L = chosen.known_N[chosen.response_L]
        separate = {name: values_L[chosen.places_L] for name, values_L in told.advantages.items()}
        if self.mixing is None:
            mixed_L = separate[SCORE]
        else:
            rewards = {name: values_N[chosen.answers_N] for name, values_N in experience.rewards.items()}
            batch = Minibatch(chosen.response_L, rewards, self.controller.coefficient)
            mixed_L = self.mixing.mix(separate, batch)
        if self.update.whiten_advantages:
            mixed_L = whiten(mixed_L, known_L)
        return mixed_L

    def _accumulate(self, packs: Sequence[Pack], target: Targets, prompts: Sequence[int]) -> None:
        """Forward and backward of a step's packs, which together are its loss."""
        totals: dict[str, Tensor] = {}
        for pack in packs:
            seed_dropout(self.device, self.seed, self.global_step, pack.batch.micro_batch, self.global_rank)
            last = pack.batch.micro_batch + 1 == pack.batch.packs
            with self._memory_errors(), contextlib.nullcontext() if last else self._unsynced():
                batch = pack.batch.to(self.device)
                outputs = self(batch, self._signals)
                own = target.of(pack, self.device)
                found = terms(outputs, batch, own, self.update, self.kl, self.controller.coefficient)
                self.manual_backward(found["loss"] * self.trainer.world_size)
            for name, term in found.items():
                totals[name] = totals[name] + term.detach() if name in totals else term.detach()
            if not last:
                self.meter.work.add(pack.batch, self._flops is not None)
        nothing = totals["loss"].new_zeros(0)
        values = PairValues(*[nothing] * 7)
        # The meter takes a step for one pack, as packs are as many as an iteration's answers need.
        rows = torch.tensor(prompts, dtype=torch.int64)
        whole = dataclasses.replace(packs[-1].batch, packs=1, micro_batch=0, row_C=rows)
        self.meter.add(whole, self.global_step, totals, values, attention=self._flops is not None)

    @property
    def _signals(self) -> frozenset[Signal]:
        return frozenset({Signal.LOGPS, Signal.VALUES} if self.advantage == "gae" else {Signal.LOGPS})

    def _packer(self, rollouts: tuple[Rollout, ...]) -> Packer:
        return Packer(rollouts, self.update.tokens_per_pack, self.trainer.world_size, self.global_rank)

    def _unsynced(self) -> AbstractContextManager[Any]:
        """Gradients of a pack that is not the step's last need not be exchanged."""
        model = self.trainer.strategy.model
        return model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()

    @property
    def _ranks_now(self) -> AllRanks:
        return AllRanks(self.trainer)
