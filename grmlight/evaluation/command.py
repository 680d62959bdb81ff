"""`grmlight evaluate`: a model of a folder on benchmarks and pair files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from grmlight.evaluation.benchmarks import Benchmark, PairFile, Reading, read_benchmark
from grmlight.evaluation.evaluate import Result, evaluate, keep_rows
from grmlight.evaluation.group_scorer import ScoringOptions, open_scorer
from grmlight.evaluation.report import EVALUATION_FILE, write
from grmlight.evaluation.tally import Bootstrap
from grmlight.export import MODEL_FOLDER, model_folder

_OF_A_RUN = ("results.json", "config.yaml", "checkpoints", MODEL_FOLDER)


@dataclasses.dataclass(frozen=True)
class Destinations:
    """Where results go.

    Attributes:
        json: all figures.
        markdown: the table.
        plot: a picture; its ending says the format (.png, .svg, .pdf).
        keep: a folder for what a run directory keeps, so that `grmlight compare` takes a model that is of no run.
    """

    json: Path | None = None
    markdown: Path | None = None
    plot: Path | None = None
    keep: Path | None = None

    def check(self) -> None:
        """ValueError in one line for what cannot be written."""
        for path in (self.json, self.markdown, self.plot):
            if path is not None and (path.is_dir() or not path.parent.is_dir()):
                raise ValueError(f"{path}: name a file in a folder that exists")
        if self.plot is not None and self.plot.suffix not in (".png", ".svg", ".pdf"):
            raise ValueError(f"{self.plot}: a picture ends with .png, .svg or .pdf")
        if self.keep is not None and (self.keep.is_file() or not self.keep.parent.is_dir()):
            raise ValueError(f"{self.keep}: name a folder, new or not, in one that exists")
        if self.keep is not None and any((self.keep / name).exists() for name in _OF_A_RUN):
            raise ValueError(f"{self.keep}: is a run directory, which keeps its own model's rows; name another folder")


def requested(benchmarks: str | None, pairs: str | None) -> list[tuple[Benchmark, Reading]]:
    """Read what is asked for: names with commas between them, each `NAME` or `NAME=PATH`, and a file of pairs.

    Errors: ValueError in one line for an unknown name, two of one name, nothing, and what cannot be read.
    """
    names = [name.strip() for name in (benchmarks or "").split(",") if name.strip()]
    known = [name.partition("=")[0] for name in names]
    if not names and not pairs:
        raise ValueError("there is nothing to evaluate on; give --benchmarks NAME,... or --pairs FILE")
    if twice := sorted({name for name in known if known.count(name) > 1}):
        raise ValueError(f"benchmark {twice[0]!r} is asked for twice; give it once")
    found = [read_benchmark(name) for name in names]
    if pairs:
        benchmark = PairFile()
        found.append((benchmark, benchmark.read(pairs)))
    return found


def evaluate_model(
    model: Path,
    benchmarks: str | None = None,
    pairs: str | None = None,
    destinations: Destinations | None = None,
    scoring: ScoringOptions | None = None,
    seed: int = 0,
) -> list[Result]:
    """Evaluate a model folder or the model of a run directory, which keeps `evaluation.json` and rows for comparisons.

    Args:
        model: the folder.
        benchmarks: see `requested`.
        pairs: see `requested`.
        destinations: files to write.
        scoring: what differs from the model's own options.
        seed: of the bootstrap.

    Errors: ValueError in one line for what is missing or cannot be used.
    """
    destinations = destinations or Destinations()
    destinations.check()
    folder = model_folder(model)
    asked = requested(benchmarks, pairs)
    scorer = open_scorer(model, scoring)
    results = [evaluate(scorer, benchmark, reading, Bootstrap(seed=seed)) for benchmark, reading in asked]
    write(results, str(model), destinations.json, destinations.markdown, destinations.plot)
    kept = [model] if folder == model / MODEL_FOLDER else []
    for directory in [*kept, destinations.keep] if destinations.keep else kept:
        directory.mkdir(exist_ok=True)
        write(results, str(model), json=directory / EVALUATION_FILE)
        keep_rows(results, directory)
    return results
