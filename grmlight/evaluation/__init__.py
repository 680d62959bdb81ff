"""Metrics over whole sets, reports, predictions and pictures."""

from grmlight.evaluation.bag_of_words import bag_of_words_accuracy as bag_of_words_accuracy
from grmlight.evaluation.benchmark_callback import Benchmarks as Benchmarks
from grmlight.evaluation.clustered import BestOfK as BestOfK
from grmlight.evaluation.clustered import Calibration as Calibration
from grmlight.evaluation.clustered import LengthCorrelation as LengthCorrelation
from grmlight.evaluation.clustered import LongerWinsRuler as LongerWinsRuler
from grmlight.evaluation.clustered import PairAccuracy as PairAccuracy
from grmlight.evaluation.clustered import SectionAverage as SectionAverage
from grmlight.evaluation.group_scorer import GroupScorer as GroupScorer
from grmlight.evaluation.group_scorer import ModelScorer as ModelScorer
from grmlight.evaluation.group_scorer import ScoringOptions as ScoringOptions
from grmlight.evaluation.group_scorer import open_scorer as open_scorer
from grmlight.evaluation.learning_curve import LearningCurve as LearningCurve
from grmlight.evaluation.metrics import LongerWins as LongerWins
from grmlight.evaluation.metrics import PairFigures as PairFigures
from grmlight.evaluation.metrics import pair_metrics as pair_metrics
from grmlight.evaluation.pair_figures import PairValues as PairValues
from grmlight.evaluation.pair_figures import pair_figures as pair_figures
from grmlight.evaluation.pair_figures import pair_sums as pair_sums
from grmlight.evaluation.pair_figures import pair_values as pair_values
from grmlight.evaluation.predictions import Prediction as Prediction
from grmlight.evaluation.predictions import predictions as predictions
from grmlight.evaluation.predictions import write_predictions as write_predictions
from grmlight.evaluation.run_report import RunReport as RunReport
from grmlight.evaluation.ties import RewardBench2Average as RewardBench2Average
from grmlight.evaluation.ties import TiesScore as TiesScore
