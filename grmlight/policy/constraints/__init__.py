"""Constrained online optimization: multipliers, proxy points, and the search for thresholds in one run."""

from grmlight.policy.constraints.constraints import Constraints
from grmlight.policy.constraints.curves import ConstraintCurves
from grmlight.policy.constraints.multiplier import Descent
from grmlight.policy.constraints.saturation import Patience
from grmlight.policy.constraints.search import ThresholdSearch, Vertex

__all__ = ["ConstraintCurves", "Constraints", "Descent", "Patience", "ThresholdSearch", "Vertex"]
