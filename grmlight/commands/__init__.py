"""The commands that need no Trainer."""

from collections.abc import Callable

from grmlight.commands.policies import run_bon, run_proxy_points, run_relabel, run_winrate
from grmlight.commands.reward_models import (
    run_compare,
    run_ensemble,
    run_evaluate,
    run_export,
    run_label,
    run_prepare,
    run_score,
)

FUNCTIONS: dict[str, tuple[str, Callable[[list[str]], None]]] = {
    "prepare": ("lint, tokenize and store preference pairs", run_prepare),
    "score": ("write the rewards of preference pairs", run_score),
    "evaluate": ("measure a model on benchmarks and pair files", run_evaluate),
    "compare": ("put runs into the papers' tables", run_compare),
    "bon": ("best-of-n: proxy and gold against KL for every n", run_bon),
    "relabel": ("label pairs anew by a reward, with noise", run_relabel),
    "winrate": ("let a judge compare the answers of policies", run_winrate),
    "label": ("let a language model label pairs for capabilities", run_label),
    "export": ("make a Hugging Face folder of a run or checkpoint", run_export),
    "proxy-points": ("find thresholds for constrained PPO in runs", run_proxy_points),
    "ensemble": ("put trained reward models together", run_ensemble),
}
