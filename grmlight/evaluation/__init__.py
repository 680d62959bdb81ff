"""Metrics over whole sets, reports, predictions and pictures."""

from grmlight.evaluation.bag_of_words import bag_of_words_accuracy as bag_of_words_accuracy
from grmlight.evaluation.learning_curve import LearningCurve as LearningCurve
from grmlight.evaluation.metrics import LongerWins as LongerWins
from grmlight.evaluation.metrics import PairFigures as PairFigures
from grmlight.evaluation.metrics import pair_metrics as pair_metrics
from grmlight.evaluation.metrics import wilson_interval as wilson_interval
from grmlight.evaluation.pair_figures import PairValues as PairValues
from grmlight.evaluation.pair_figures import pair_figures as pair_figures
from grmlight.evaluation.pair_figures import pair_sums as pair_sums
from grmlight.evaluation.pair_figures import pair_values as pair_values
from grmlight.evaluation.predictions import Prediction as Prediction
from grmlight.evaluation.predictions import predictions as predictions
from grmlight.evaluation.predictions import write_predictions as write_predictions
from grmlight.evaluation.run_report import RunReport as RunReport
