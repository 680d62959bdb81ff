"""Best-of-n: sample a pool, score it once, and read off every n."""

from grmlight.policy.best_of_n.estimator import best_of_n, kl_of_n, sizes_up_to
from grmlight.policy.best_of_n.job import BestOfN, named_rewards
from grmlight.policy.best_of_n.run import Result, run_best_of_n
from grmlight.policy.best_of_n.sweep import SweepOptions

__all__ = [
    "BestOfN",
    "Result",
    "SweepOptions",
    "best_of_n",
    "kl_of_n",
    "named_rewards",
    "run_best_of_n",
    "sizes_up_to",
]
