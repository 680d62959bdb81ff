"""Preference pairs: sources, rendering, stores, batches and the DataModule."""

from grmlight.data.batch import GroupBatch as GroupBatch
from grmlight.data.batch import Layout as Layout
from grmlight.data.datamodule import PairDataModule as PairDataModule
from grmlight.data.loader import GroupLoader as GroupLoader
from grmlight.data.loader import TrainingLoader as TrainingLoader
from grmlight.data.options import PrepareOptions as PrepareOptions
from grmlight.data.prepare import Prepared as Prepared
from grmlight.data.prepare import prepare as prepare
from grmlight.data.token_loader import TokenLoader as TokenLoader
