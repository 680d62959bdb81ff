"""Metrics over whole sets, reports, predictions and pictures."""

from grmlight.evaluation.bag_of_words import bag_of_words_accuracy as bag_of_words_accuracy
from grmlight.evaluation.learning_curve import LearningCurve as LearningCurve
from grmlight.evaluation.metrics import LongerWins as LongerWins
from grmlight.evaluation.metrics import PairAccuracy as PairAccuracy
from grmlight.evaluation.metrics import PairCount as PairCount
from grmlight.evaluation.metrics import RewardMargin as RewardMargin
from grmlight.evaluation.metrics import RewardMean as RewardMean
from grmlight.evaluation.metrics import pair_metrics as pair_metrics
from grmlight.evaluation.metrics import wilson_interval as wilson_interval
from grmlight.evaluation.predictions import Prediction as Prediction
from grmlight.evaluation.predictions import predictions as predictions
from grmlight.evaluation.predictions import write_predictions as write_predictions
from grmlight.evaluation.run_report import RunReport as RunReport
