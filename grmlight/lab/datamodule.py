"""WorldData: the embedded world's pairs, in and out of distribution, as a DataModule."""

from __future__ import annotations

from pathlib import Path

from grmlight.data.datamodule import PairDataModule
from grmlight.data.options import PrepareOptions
from grmlight.lab.files import WorldFiles, world_files


class WorldData(PairDataModule):
    """Preference pairs of an embedded world, with an exact gold reward.

    Trains on noisy labels of in-distribution prompts; evaluates on clean gold labels, in distribution (`id`) and out of
    it (`ood_topic`, `ood_template`, `ood_all`).

    Args:
        world: seed of the world. 0 is shipped; another one is built first, which takes minutes.
        pairs: training pairs.
        offset: training pairs to leave out before the first, so that runs can train on disjoint pairs.
        flip: fraction of training labels flipped on top of the world's own noise.
        flip_seed: the flips' own seed.
        pairs_per_step: pairs of one optimizer step, over all devices and accumulated packs.
        eval_pairs: pairs of one evaluation step, over all devices.
        seed: seed of the training order.
        tokens_per_pack: see `PairDataModule`.
    """

    def __init__(
        self,
        world: int = 0,
        pairs: int = 400,
        offset: int = 0,
        flip: float = 0.0,
        flip_seed: int = 0,
        pairs_per_step: int | None = None,
        eval_pairs: int = 128,
        seed: int = 0,
        tokens_per_pack: int | None = None,
    ) -> None:
        options = PrepareOptions(limit=pairs, offset=offset, flip=flip, flip_seed=flip_seed)
        super().__init__(
            prepare=options,
            pairs_per_step=pairs_per_step,
            eval_pairs=eval_pairs,
            seed=seed,
            tokens_per_pack=tokens_per_pack,
        )
        self.world = world

    def _prepare(self, stage: str | None) -> None:
        files = world_files(self.world)
        self.tokenizer = str(files.tokenizer)
        self.train = str(self._training_file(files))
        self.val = {name: str(path) for name, path in files.tests.items() if name == "id" or name.startswith("ood_")}
        super()._prepare(stage)

    def _training_file(self, files: WorldFiles) -> Path:
        return files.train
