"""The commands that need no Trainer: each parses its arguments and calls one function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jsonargparse import ArgumentParser

from grmlight.assemble import assemble
from grmlight.convert import Format, convert
from grmlight.data.files import write_json
from grmlight.data.options import PrepareOptions
from grmlight.data.prepare import prepare
from grmlight.evaluation.benchmarks import BENCHMARKS
from grmlight.evaluation.command import Destinations, evaluate_model
from grmlight.evaluation.compare import TABLES, compare
from grmlight.evaluation.compare_output import as_text, write_comparison
from grmlight.evaluation.group_scorer import ScoringOptions
from grmlight.evaluation.matrix import launch_lines
from grmlight.evaluation.report import as_table
from grmlight.evaluation.run_files import read_runs
from grmlight.evaluation.run_report import describe_report
from grmlight.models.aggregation import Aggregation
from grmlight.scoring import score


def run_compare(arguments: list[str]) -> None:
    """`compare RUN...`, or `compare --launch`."""
    parser = ArgumentParser(
        exit_on_error=False,
        prog="grmlight compare",
        description="Put runs into the papers' tables, with paired differences to the first and the published rows.",
    )
    parser.add_argument("runs", nargs="*", help="run directories, each RUN or LABEL=RUN; differences are to the first")
    parser.add_argument("--table", choices=list(TABLES), help="this table alone, of those that the runs have")
    parser.add_argument(
        "--published",
        choices=["matching", "all", "none"],
        default="matching",
        help="published rows: of the runs' own settings, all on their base models and data, or none",
    )
    parser.add_argument("--markdown", type=Path, help="write the tables as Markdown")
    parser.add_argument("--json", type=Path, help="write everything as JSON")
    parser.add_argument("--plot", type=Path, help="draw the tables, as .png, .svg or .pdf")
    parser.add_argument("--launch", action="store_true", help="print the commands of the GRM paper's tables instead")
    given = parser.parse_args(arguments)
    if given.launch:
        print(launch_lines())
        return
    tables = compare(read_runs(given.runs), given.table, given.published)
    write_comparison(tables, given.json, given.markdown, given.plot)
    print(as_text(tables))


def run_prepare(arguments: list[str]) -> None:
    """`prepare FILE --tokenizer DIR --out DIR`."""
    parser = ArgumentParser(
        exit_on_error=False, prog="grmlight prepare", description="Lint, tokenize and store preference pairs."
    )
    parser.add_argument("file", type=str, help="a file, a folder, or a data set NAME[@CONFIG][:SPLIT]")
    parser.add_argument("--tokenizer", type=str, required=True, help="a hub name or a folder")
    parser.add_argument("--out", type=Path, required=True, help="the store's folder")
    parser.add_class_arguments(PrepareOptions)
    given = parser.parse_args(arguments)
    options = PrepareOptions(**{name: given[name] for name in PrepareOptions.__dataclass_fields__})
    found = prepare(given.file, given.tokenizer, options, given.out)
    write_json(given.out / "report.json", found.report)
    print(describe_report("prepared", {"source": given.file} | found.report))
    print(f"store: {given.out}, report: {given.out / 'report.json'}")


def run_score(arguments: list[str]) -> None:
    """`score MODEL FILE --out F`."""
    parser = ArgumentParser(
        exit_on_error=False, prog="grmlight score", description="Write the rewards of preference pairs."
    )
    parser.add_argument("model", type=Path, help="a run directory or a model folder")
    parser.add_argument("file", type=str, help="a file, a folder, or a data set NAME[@CONFIG][:SPLIT]")
    parser.add_argument("--out", type=Path, required=True, help="the file to write, a JSON line a pair")
    parser.add_argument("--pairs_per_batch", type=int, default=64, help="pairs of one forward")
    parser.add_argument("--aggregation", type=Aggregation | None, help="of an ensemble: mean, wco or uwo")
    parser.add_argument("--variance_weight", type=float | None, help="lambda of uwo")
    given = parser.parse_args(arguments)
    found = score(given.model, given.file, given.out, given.pairs_per_batch, given.aggregation, given.variance_weight)
    print(describe_report("scored", {"source": given.file} | found))
    print(f"scores: {given.out}")


def run_evaluate(arguments: list[str]) -> None:
    """`evaluate MODEL --benchmarks ... | --pairs FILE`."""
    parser = ArgumentParser(
        exit_on_error=False, prog="grmlight evaluate", description="Measure a model on benchmarks and pair files."
    )
    parser.add_argument("model", type=Path, help="a run directory or a model folder")
    names = ", ".join(BENCHMARKS)
    parser.add_argument("--benchmarks", type=str, help=f"names, with commas: {names}; NAME=PATH reads a local copy")
    parser.add_argument("--pairs", type=str, help="a file of pairs or rankings, in any form that training takes")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_class_arguments(Destinations)
    parser.add_class_arguments(ScoringOptions)
    given = parser.parse_args(arguments)
    destinations = Destinations(**{name: given[name] for name in Destinations.__dataclass_fields__})
    scoring = ScoringOptions(**{name: given[name] for name in ScoringOptions.__dataclass_fields__})
    results = evaluate_model(given.model, given.benchmarks, given.pairs, destinations, scoring, given.seed)
    print(as_table(results))


def run_export(arguments: list[str]) -> None:
    """`export RUN_OR_CHECKPOINT --out DIR [--format F]`."""
    parser = ArgumentParser(
        exit_on_error=False, prog="grmlight export", description="Make a Hugging Face folder of a run or checkpoint."
    )
    parser.add_argument("source", type=Path, help="a run directory, a model folder, a .ckpt file or folder of shards")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument(
        "--format",
        type=Format,
        default="grm",
        help="GRM's layout, a peft adapter, or a sequence classifier",
    )
    parser.add_argument("--distill", type=str, help="pairs on which a classifier's MLP head becomes a linear one")
    given = parser.parse_args(arguments)
    exported, notes = convert(given.source, given.out, given.format, given.distill)
    print("\n".join([f"exported: {exported}", *notes, f"model: {given.out}"]))


def run_ensemble(arguments: list[str]) -> None:
    """`ensemble MODEL MODEL ... --reference FILE --out DIR`."""
    parser = ArgumentParser(
        exit_on_error=False, prog="grmlight ensemble", description="Put trained reward models together."
    )
    parser.add_argument("models", type=Path, nargs="+", help="run directories or model folders")
    parser.add_argument("--reference", type=str, required=True, help="pairs on which members are recentered and scaled")
    parser.add_argument("--out", type=Path, required=True, help="the ensemble's folder")
    parser.add_argument("--aggregation", type=Aggregation, default="mean", help="mean, wco or uwo")
    parser.add_argument("--variance_weight", type=float, default=0.5, help="lambda of uwo")
    given = parser.parse_args(arguments)
    found = assemble(given.models, given.out, given.reference, given.aggregation, given.variance_weight)
    print(describe_report("reference", {"source": given.reference} | found.report))
    print(f"ensemble of {len(given.models)}: {given.out}")


def run_label(arguments: list[str]) -> None:
    """`label FILE --out F --capabilities F --endpoint URL | --model DIR`."""
    from grmlight.labeling import EndpointAsker, LocalAsker, label, read_capabilities

    parser = ArgumentParser(
        exit_on_error=False,
        prog="grmlight label",
        description="Ask a language model which side of each pair is better in a capability; keep what it agrees on.",
    )
    parser.add_argument("file", type=str, help="a file, a folder, or a data set NAME[@CONFIG][:SPLIT]")
    parser.add_argument("--out", type=Path, required=True, help="the pairs to write, a JSON line a label")
    parser.add_argument("--capabilities", type=Path, required=True, help="YAML: {category: {capability: description}}")
    parser.add_argument("--endpoint", type=str, help="an OpenAI-compatible API, as in http://127.0.0.1:8000/v1")
    parser.add_argument("--model", type=str, help="a folder or a hub name; with --endpoint the name it is served by")
    parser.add_argument("--parallel", type=int, default=4, help="questions at once, to an endpoint")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for an endpoint's reply")
    parser.add_argument("--retries", type=int, default=5, help="further tries after an error that may pass")
    given = parser.parse_args(arguments)
    if not given.endpoint and not given.model:
        raise ValueError("name the language model: --model DIR, or --endpoint URL")
    capabilities = read_capabilities(given.capabilities)
    if given.endpoint:
        asker = EndpointAsker(given.endpoint, given.model, given.timeout, given.retries, given.parallel)
    else:
        asker = LocalAsker(given.model)
    print(label(given.file, given.out, capabilities, asker).describe())
    print(f"labels: {given.out}")


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
