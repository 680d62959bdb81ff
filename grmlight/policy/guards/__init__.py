"""Guards against over-optimization: callbacks that look at what `SampledKL` measures, and stop, warn or show."""

from grmlight.policy.guards.kl_budget import KLBudget
from grmlight.policy.guards.length_monitor import LengthMonitor
from grmlight.policy.guards.proxy_gold_gap import ProxyGoldGap
from grmlight.policy.guards.repetition_monitor import RepetitionMonitor
from grmlight.policy.guards.sample_table import SampleTable

__all__ = ["KLBudget", "LengthMonitor", "ProxyGoldGap", "RepetitionMonitor", "SampleTable"]
