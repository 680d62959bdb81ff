"""The commands on pairs and reward models: each parses its arguments and calls one function."""

from __future__ import annotations

import time
from pathlib import Path

from jsonargparse import ArgumentParser

from grmlight.assemble import assemble
from grmlight.convert import Format, convert
from grmlight.data.files import write_json
from grmlight.data.options import PrepareOptions
from grmlight.data.prepare import prepare
from grmlight.data.summary import describe_summary
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
    start = time.monotonic()
    found = prepare(given.file, given.tokenizer, options, given.out)
    seconds = time.monotonic() - start
    write_json(given.out / "report.json", found.report)
    print(describe_report("prepared", {"source": given.file} | found.report))
    print(describe_summary(found, seconds))
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
