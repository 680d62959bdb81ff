"""The commands on policies: each parses its arguments and calls one function."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser


def run_bon(arguments: list[str]) -> None:
    """`bon --policy LM --reward RM --gold GOLD --prompts F --samples N --out DIR`."""
    from grmlight.policy.best_of_n import BestOfN, SweepOptions, named_rewards, run_best_of_n
    from grmlight.policy.sampler import SamplingOptions

    parser = ArgumentParser(
        exit_on_error=False,
        prog="grmlight bon",
        description="Sample answers, score each once, and give proxy and gold of the best of n against KL for every n.",
    )
    parser.add_argument("--policy", type=str, required=True, help="a model folder, a run directory or a hub name")
    parser.add_argument("--prompts", type=str, required=True, help="the file of prompts")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the pool, its scores and the curves")
    parser.add_argument(
        "--reward", nargs="+", default=[], help="proxies: SPEC or NAME=SPEC; a run, a model, a class path"
    )
    parser.add_argument("--gold", type=str, help="the reward that stands for people, as grmlight.lab.GoldReward")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--pairs", type=Path, help="write two answers a prompt as pairs")
    parser.add_argument("--best", type=Path, help="write the best of the first --n answers, beside the worst")
    parser.add_argument("--n", type=int, help="answers that --best chooses from")
    parser.add_argument("--label", type=str, help="what orders pairs: a reward, mean, wco, uwo or gold")
    parser.add_class_arguments(SamplingOptions)
    parser.add_class_arguments(SweepOptions)
    parser.set_defaults({"samples": 256})
    given = parser.parse_args(arguments)
    names = ("policy", "prompts", "out", "gold", "seed", "pairs", "best", "n", "label")
    job = BestOfN(
        **{name: given[name] for name in names},
        rewards=named_rewards(given.reward),
        sampling=SamplingOptions(**{name: given[name] for name in SamplingOptions.__dataclass_fields__}),
        sweep=SweepOptions(**{name: given[name] for name in SweepOptions.__dataclass_fields__}),
    )
    print(run_best_of_n(job).describe())
    print(f"best of n: {given.out}")


def run_relabel(arguments: list[str]) -> None:
    """`relabel FILE --reward GOLD --out F`."""
    from grmlight.policy.relabel import relabel
    from grmlight.policy.rewards import open_reward

    parser = ArgumentParser(
        exit_on_error=False, prog="grmlight relabel", description="Label pairs anew by a reward, with noise if wanted."
    )
    parser.add_argument("file", type=str, help="a file, a folder, or a data set NAME[@CONFIG][:SPLIT]")
    parser.add_argument("--reward", type=str, required=True, help="a run, a model, or a class path")
    parser.add_argument("--out", type=Path, required=True, help="the pairs to write")
    parser.add_argument("--noise", type=float, default=0.0, help="share of labels to flip")
    parser.add_argument("--seed", type=int, default=0, help="of the flips")
    given = parser.parse_args(arguments)
    found = relabel(given.file, given.out, open_reward(given.reward), given.noise, given.seed)
    print(f"{found.describe()}\nrelabeled: {given.out}")


def run_proxy_points(arguments: list[str]) -> None:
    """`proxy-points RUN... --rewards A,B --evaluation GOLD --out thresholds.yaml`."""
    from grmlight.policy.constraints.proxy_points import FitOptions, Method, proxy_points

    parser = ArgumentParser(
        exit_on_error=False,
        prog="grmlight proxy-points",
        description="Find up to which value of each reward more of it still means more of the evaluation.",
    )
    parser.add_argument(
        "runs", type=str, nargs="+", help="run directories or files of JSON lines; REWARD=RUN for one that optimized it"
    )
    parser.add_argument("--rewards", type=str, required=True, help="names, with commas")
    parser.add_argument("--evaluation", type=str, default="gold", help="the name of what no run optimized")
    parser.add_argument("--out", type=Path, required=True, help="the YAML file to write; the picture is beside it")
    parser.add_argument("--method", type=Method, default="joint", help="which points the thresholds are")
    parser.add_class_arguments(FitOptions)
    given = parser.parse_args(arguments)
    options = FitOptions(**{name: given[name] for name in FitOptions.__dataclass_fields__})
    names = [name.strip() for name in given.rewards.split(",") if name.strip()]
    print(proxy_points(given.runs, names, given.evaluation, given.out, given.method, options))


def run_winrate(arguments: list[str]) -> None:
    """`winrate A [MORE ...] B --prompts F --judge gold|RM|endpoint --out DIR`."""
    from grmlight.labeling import EndpointAsker
    from grmlight.policy import winrate
    from grmlight.policy.sampler import SamplingOptions

    parser = ArgumentParser(
        exit_on_error=False,
        prog="grmlight winrate",
        description="Let a judge compare the answers of policies to the same prompts: win, tie and loss.",
    )
    parser.add_argument(
        "policies",
        nargs="+",
        help="each SPEC or LABEL=SPEC, the last one is what the others are compared with: a model folder, a run "
        "directory, a hub name, or a file of JSON lines with `prompt` and `response`",
    )
    parser.add_argument("--prompts", type=str, required=True, help="the file of prompts")
    parser.add_argument(
        "--judge",
        type=str,
        required=True,
        help="gold (the embedded world's), a reward model, a judge's folder, a class path, or the base of an "
        "OpenAI-compatible API, as in http://127.0.0.1:8000/v1",
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder of answers, replies and results")
    parser.add_argument("--length_ratio", type=float, default=1.1, help="lengths match up to this ratio")
    parser.add_argument("--draws", type=int, default=2000, help="of the bootstrap over prompts")
    parser.add_argument("--seed", type=int, default=0, help="of the answers")
    parser.add_argument("--model", type=str, help="of an API: the name that the judge is served by")
    parser.add_argument("--parallel", type=int, default=4, help="questions at once, to an API")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for an API's reply")
    parser.add_argument("--retries", type=int, default=5, help="further tries after an error that may pass")
    parser.add_class_arguments(SamplingOptions)
    given = parser.parse_args(arguments)
    asker = None
    if given.judge.startswith(("http://", "https://")):
        asker = EndpointAsker(given.judge, given.model, given.timeout, given.retries, given.parallel)
    job = winrate.Winrate(
        policies=given.policies,
        prompts=given.prompts,
        judge="grmlight.lab.GoldReward" if given.judge == "gold" else given.judge,
        out=given.out,
        sampling=SamplingOptions(**{name: given[name] for name in SamplingOptions.__dataclass_fields__}),
        endpoint=asker,
        length_ratio=given.length_ratio,
        draws=given.draws,
        seed=given.seed,
    )
    print(winrate.run_winrate(job).describe())
    print(f"win rates: {given.out}")
