"""Reference log-probs of a training store: each response's log-prob under the start model, computed once and kept.

Notable decisions:

- They are computed where the model is built, before a checkpoint is restored: there the weights are the start weights
  in a resumed run too.
- What they depend on names the file that keeps them: the start weights, the precision, the store.
- Rank 0 reads and writes, and every rank gets what it read: caches need not be shared, and no rank waits for a file.
- Every rank runs the same number of forwards, so that sharded models do not hang.

Shape suffixes: N responses of the store.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, TypeVar

import lightning.pytorch as L
import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from grmlight.data.loader import GroupLoader
from grmlight.data.prepare import Prepared
from grmlight.data.sidecar import ResponseValues, Sidecar, responses_of
from grmlight.models import AnyRewardModel, PolicyModel, Signal, evaluating
from grmlight.models.parallel import reshard

KIND = "reference_logps"
"""Begins the names of the files."""

_Result = TypeVar("_Result")


def start_weights(trainer: L.Trainer, model: AnyRewardModel | PolicyModel) -> str:
    """A digest of the causal LM's config and tensors, the same on every rank; empty if the model is sharded."""
    return "" if isinstance(model, FSDPModule) else _on_rank_zero(trainer, lambda: _digest(model.lm))


def reference_logps(
    trainer: L.Trainer,
    model: AnyRewardModel | PolicyModel,
    prepared: Prepared,
    weights: str,
    pairs: int,
    unchanged: bool,
) -> ResponseValues:
    """The log-probs of a store's responses under the start model: found in its folder, or computed and put there.

    Call it on every rank.

    Args:
        trainer: tells rank, device and precision.
        model: the model, sharded already where it will be.
        prepared: the training pairs.
        weights: digest of the start weights.
        pairs: groups of one forward over all ranks and packs.
        unchanged: whether the model still has these weights.

    Errors: ValueError if the folder cannot be written, a log-prob is not finite, or the start weights are gone.
    """
    depends_on = {"weights": weights, "precision": _precision(trainer, model)}
    sidecar = Sidecar(prepared.directory, prepared.store, KIND, depends_on)
    name = f"reference log-probs of {prepared.source}"
    if (found := _on_rank_zero(trainer, lambda: _read(sidecar))) is not None:
        rank_zero_info(f"{name}: found in {sidecar.path}")
        return found
    if not unchanged:
        raise ValueError(
            f"{name}: the model was trained since it was built, and its start weights are gone; make a new module"
        )
    _on_rank_zero(trainer, lambda: _writing(sidecar, sidecar.check_writable))
    values_N = _compute(trainer, model, prepared, sidecar.first_G, pairs).cpu().numpy()
    _check_finite(values_N, sidecar.first_G, prepared)
    _on_rank_zero(trainer, lambda: _writing(sidecar, lambda: sidecar.write(values_N)))
    rank_zero_info(f"{name}: computed, and kept in {sidecar.path}")
    return ResponseValues(values_N, sidecar.first_G)


def _digest(lm: PreTrainedModel) -> str:
    config = {name: value for name, value in lm.config.to_dict().items() if name not in _NOT_THE_MODEL}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    state = lm.state_dict()
    for name in tqdm(sorted(state), desc="reading the start weights", unit=" tensors", delay=2):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


_NOT_THE_MODEL = frozenset({"_name_or_path", "transformers_version"})


def _precision(trainer: L.Trainer, model: AnyRewardModel | PolicyModel) -> str:
    """What decides in which dtype a forward computes: sharded layers may have one of their own."""
    sharded = ", sharded" if isinstance(model, FSDPModule) else ""
    return (
        f"{trainer.precision} on {trainer.strategy.root_device.type}{sharded}, "
        f"matmul {torch.get_float32_matmul_precision()}"
    )


def _compute(
    trainer: L.Trainer, model: AnyRewardModel | PolicyModel, prepared: Prepared, first_G: np.ndarray, pairs: int
) -> Float[Tensor, " N"]:
    """One pass over the store, in packs as large as those of training."""
    device = trainer.strategy.root_device
    loader = GroupLoader(
        prepared.store, pairs, trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches
    )
    logps_N = torch.zeros(int(first_G[-1]), dtype=torch.float32, device=device)
    model.to(device)
    with (
        evaluating(model),
        torch.no_grad(),
        trainer.precision_plugin.forward_context(),
    ):
        for deal in tqdm(
            loader.deals(),
            desc="reference log-probs",
            total=len(loader),
            unit=" packs",
            delay=2,
            disable=not trainer.is_global_zero,
        ):
            batch = loader.batch(deal)
            outputs = model(batch.to(device), frozenset({Signal.LOGPS}))
            assert outputs.logps_N is not None
            counted_N = batch.count_G[batch.group_N] > 0
            index_N = torch.from_numpy(responses_of(first_G, deal.groups))[counted_N]
            logps_N[index_N.to(device)] = outputs.logps_N[counted_N.to(device)].float()
    reshard(model)
    return trainer.strategy.reduce(logps_N, reduce_op="sum")


def _read(sidecar: Sidecar) -> ResponseValues | None:
    try:
        return sidecar.read()
    except ValueError as error:
        rank_zero_info(f"{error}; computing it again")
        return None


def _writing(sidecar: Sidecar, write: Callable[[], Any]) -> None:
    try:
        write()
    except OSError as error:
        raise ValueError(
            f"{sidecar.path.parent}: reference log-probs cannot be kept there ({error.strerror or error}); make it "
            "writable, set GRMLIGHT_CACHE to a folder that is, or set model.init_args.reference to copy"
        ) from error


def _check_finite(values_N: np.ndarray, first_G: np.ndarray, prepared: Prepared) -> None:
    if len(bad := np.flatnonzero(~np.isfinite(values_N))):
        row = prepared.store.rows()[int(np.searchsorted(first_G, bad[0], side="right")) - 1]["row"]
        raise ValueError(
            f"{prepared.source}: row {row} has a log-prob under the start model that is not finite; "
            "look at the row and the weights, or set trainer.precision to 32-true"
        )


def _on_rank_zero(trainer: L.Trainer, action: Callable[[], _Result]) -> _Result:
    """What an action of rank 0 returns, on every rank; its error ends every rank, lest one wait for the others."""
    result: Any = None
    failed: Exception | None = None
    if trainer.is_global_zero:
        try:
            result = action()
        except Exception as error:
            failed = error
    result, failure = trainer.strategy.broadcast((result, failed and f"{failed}"))
    if failed is not None:
        raise failed
    if failure is not None:
        raise ValueError(failure)
    return result
