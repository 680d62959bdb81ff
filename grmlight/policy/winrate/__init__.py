"""Win rates: a judge compares the answers of policies to the same prompts."""

from grmlight.policy.winrate.run import Winrate, run_winrate

__all__ = ["Winrate", "run_winrate"]
