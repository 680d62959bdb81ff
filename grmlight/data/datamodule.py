"""PairDataModule: preference pairs from files to packs."""

from __future__ import annotations

import dataclasses
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.utilities import rank_zero_info

from grmlight._data_rs import Store
from grmlight.data.course import Course, CourseLoader
from grmlight.data.files import cache_directory
from grmlight.data.labels import GroupLabels
from grmlight.data.loader import GroupLoader, PackLoader, Select, TrainingLoader
from grmlight.data.options import PrepareOptions
from grmlight.data.prepare import Prepared, prepare
from grmlight.data.sidecar import ResponseValues
from grmlight.data.token_loader import TokenLoader, check_fit
from grmlight.data.train_tokenizer import trained_tokenizer

Sources = str | dict[str, str] | None


class TextDataModule(L.LightningDataModule):
    """What a run needs to know of its data, whatever that is: how text becomes tokens.

    Attributes:
        tokenizer: see `grmlight.data.tokenizer.load_tokenizer`.
        options: how text becomes tokens.
    """

    tokenizer: str
    options: PrepareOptions

    def place(self) -> dict[str, Any]:
        """This process among those that share the data, as loaders take it."""
        if self.trainer is None:
            return {}
        return {"rank": self.trainer.global_rank, "ranks": self.trainer.world_size}

    def check_tokenizer(self) -> None:
        """Errors: ValueError if none is named."""
        if not self.tokenizer:
            raise ValueError("no tokenizer is named; set data.init_args.tokenizer to the backbone's name or folder")


class PairDataModule(TextDataModule):
    """Preference pairs for training and evaluation.

    Args:
        train: a file (JSONL, .gz, Parquet), a folder, or a Hugging Face data set `NAME[@CONFIG][:SPLIT]`.
        val: the same for validation, or several by name.
        test: the same for `test` and `predict`; `val` where it is not given.
        tokenizer: a hub name, a folder, `package:MODULE/PATH`, or `train:SIZE` to train one on the training pairs.
        prepare: how pairs become tokens.
        pairs_per_step: pairs of one optimizer step, over all devices and accumulated packs; 16 if neither this nor
            `tokens_per_pack` is given.
        eval_pairs: pairs of one evaluation step, over all devices.
        seed: seed of the training order.
        tokens_per_pack: instead of `pairs_per_step`: fill each pack with pairs up to so many tokens, prompts counted
            once; a step is one pack for each device and accumulated batch, whatever pairs it has.

    Attributes:
        prepared: the stores by the names of their sets; the training pairs' is "train".
        reference_logps: of the sets' responses, by the sets' names; set by a module that computed them for this run.
        select: what a training pack is turned into before it is trained on; set by a module that trains on other
            responses than the pairs'.
        labels: tasks and capabilities of the sets' groups, by the sets' names; set by a module that needs them.
        course: the phases of the training, which then is one epoch; set by a module that has phases.
    """

    def __init__(
        self,
        train: str | None = None,
        val: Sources = None,
        test: Sources = None,
        tokenizer: str = "",
        prepare: PrepareOptions | None = None,
        pairs_per_step: int | None = None,
        eval_pairs: int = 64,
        seed: int = 0,
        tokens_per_pack: int | None = None,
    ) -> None:
        super().__init__()
        if pairs_per_step is not None and tokens_per_pack is not None:
            raise ValueError("data.init_args has pairs_per_step and tokens_per_pack; set one of them to null")
        self.train, self.val, self.test = train, val, test
        self.tokenizer = tokenizer
        self.options = prepare or PrepareOptions()
        self.tokens_per_pack = tokens_per_pack
        self._pairs_per_step = 16 if pairs_per_step is None else pairs_per_step
        self.eval_pairs = eval_pairs
        self.seed = seed
        self.prepared: dict[str, Prepared] = {}
        self.reference_logps: dict[str, ResponseValues] = {}
        self.select: Select | None = None
        self.labels: dict[str, GroupLabels] = {}
        self.course: Course | None = None
        self._token_loader: TokenLoader | None = None
        self._resumed: dict[str, Any] | None = None

    @property
    def pairs_per_step(self) -> int:
        """Pairs of one optimizer step; with `tokens_per_pack` their mean, as the stores have them."""
        if self.tokens_per_pack is None:
            return self._pairs_per_step
        costs = self.prepared["train"].store.costs
        shares = self.trainer.world_size * self.trainer.accumulate_grad_batches if self.trainer else 1
        return max(1, int(self.tokens_per_pack * len(costs) / costs.sum())) * shares

    @property
    def val_sources(self) -> dict[str, str]:
        """The validation sets by name."""
        return named(self.val, "val")

    @property
    def test_sources(self) -> dict[str, str]:
        """The test sets by name; the validation sets where none are given."""
        return named(self.test, "test") or self.val_sources

    def sources(self, stage: str | None) -> dict[str, str]:
        """What a stage needs, by name.

        Errors: ValueError if that is nothing.
        """
        fit = {"train": self.train} if self.train else {}
        needed = {
            "fit": fit | self.val_sources,
            "validate": self.val_sources,
            "test": self.test_sources,
            "predict": self.test_sources,
        }.get(stage or "", fit | self.val_sources | self.test_sources)
        if stage == "fit" and not fit:
            raise ValueError("there is nothing to train on; set data.init_args.train to a file or a data set")
        if not needed:
            raise ValueError(f"there is nothing to {stage} on; set data.init_args.val or .test")
        return needed

    def prepare_data(self) -> None:
        """Write the stores that are missing; Lightning calls this on one process a node."""
        stage = self.trainer.state.fn.value if self.trainer and self.trainer.state.fn else None
        self._prepare(stage)

    def setup(self, stage: str | None = None) -> None:
        """Open the stores."""
        # They are of one run's model; the next run may have another.
        self.reference_logps, self.labels, self.course, self.select = {}, {}, None, None
        self._token_loader = None
        self._prepare(stage)
        if self.tokens_per_pack is not None and "train" in self.prepared:
            train = self.prepared["train"]
            check_fit(train.store, self.tokens_per_pack, train.source)
            if self.trainer is not None:
                # Epochs may differ by a step, and Lightning counts steps when it asks for a loader.
                trainer: Any = self.trainer
                trainer.reload_dataloaders_every_n_epochs = 1

    def _prepare(self, stage: str | None) -> None:
        self.check_tokenizer()
        sources = self.sources(stage)
        self.tokenizer = trained_tokenizer(self.tokenizer, self.train or "", cache_directory() / "tokenizers")
        for name, source in sources.items():
            if name not in self.prepared or self.prepared[name].source != source:
                options = self.options if name == "train" else evaluation_options(self.options)
                self.prepared[name] = prepare(source, self.tokenizer, options)

    def state_dict(self) -> dict[str, Any]:
        """Where a TokenLoader stands: what Lightning asks for in a later epoch must know that epoch."""
        return {} if self._token_loader is None else self._token_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep it until there is a TokenLoader to go on with."""
        self._resumed = state_dict

    def train_dataloader(self) -> PackLoader:
        """Packs in the order of (seed, epoch)."""
        options: dict[str, Any] = {
            "packs": self.trainer.accumulate_grad_batches if self.trainer else 1,
            "seed": self.seed,
            "reference_logps": self.reference_logps.get("train"),
            "labels": self.labels.get("train"),
            "select": self.select,
        } | self.place()
        store = self.prepared["train"].store
        if self.tokens_per_pack is not None:
            return self._tokens_dataloader(store, self.tokens_per_pack, options)
        if self.course is not None:
            return CourseLoader(self.course, store, self.pairs_per_step, **options)
        loader = TrainingLoader(store, self.pairs_per_step, **options)
        if loader.ranks > 1:
            rank_zero_info(f"train: tokens of the busiest rank / mean: {_described(loader)}")
        return loader

    def _tokens_dataloader(self, store: Store, tokens_per_pack: int, options: dict[str, Any]) -> TokenLoader:
        """The same loader in all epochs: the first count of steps is that of epoch 0, in a resumed run too."""
        if self.course is not None:
            raise ValueError(
                "phases are counted in pairs; set data.init_args.pairs_per_step instead of tokens_per_pack"
            )
        if self._token_loader is None:
            self._token_loader = loader = TokenLoader(store, tokens_per_pack, **options)
            pairs = len(store) / loader.steps_per_epoch
            rank_zero_info(
                f"train: {loader.steps_per_epoch} steps in the first epoch, of {pairs:.1f} pairs on average; packs are "
                f"{loader.fill:.1%} full; tokens of the busiest rank / mean: {_described(loader)}"
            )
        elif self._resumed is not None:
            # Lightning asks again before the training goes on in a later epoch, but not in the first one.
            if not self._token_loader.begun:
                self._token_loader.load_state_dict(self._resumed)
            self._resumed = None
        return self._token_loader

    def val_dataloader(self) -> list[GroupLoader]:
        """One loader a validation set, in the order of `val_sources`."""
        return self._evaluation_loaders(self.val_sources)

    def test_dataloader(self) -> list[GroupLoader]:
        """One loader a test set, in the order of `test_sources`."""
        return self._evaluation_loaders(self.test_sources)

    def predict_dataloader(self) -> list[GroupLoader]:
        """The test sets."""
        return self._evaluation_loaders(self.test_sources)

    def _evaluation_loaders(self, sources: dict[str, str]) -> list[GroupLoader]:
        return [
            GroupLoader(
                self.prepared[name].store,
                self.eval_pairs,
                reference_logps=self.reference_logps.get(name),
                labels=self.labels.get(name),
                **self.place(),
            )
            for name in sources
        ]


def _described(loader: PackLoader) -> str:
    step, epoch = loader.imbalance()
    return f"{step:.3f} a step, {epoch:.3f} over the epoch"


def evaluation_options(options: PrepareOptions) -> PrepareOptions:
    """Evaluation sets are read whole and with their own labels: no stride, no subset, no noise."""
    return dataclasses.replace(options, stride=1, offset=0, limit=None, flip=0.0)


def named(sources: Sources, default: str) -> dict[str, str]:
    """Evaluation sets by name: a single one has that of its kind. Errors: ValueError for one that is named "train"."""
    if not sources:
        return {}
    named = {default: sources} if isinstance(sources, str) else dict(sources)
    if "train" in named:
        raise ValueError(f"data.init_args.{default}: a set may not be named 'train'; give it another name")
    return named
