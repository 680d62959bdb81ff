"""Tokenizer engines that are not what transformers asks for: installed beside the environment, never into it."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.data.jobs import Worker
from grmlight.data.files import cache_directory

ENGINES = {"tokenizers 1.0": "tokenizers==1.0.0rc3", "fastokens": "fastokens==0.3.5"}


def composition(engine: str) -> Worker | None:
    """The Python composition on an engine; None, with a line that says so, where it cannot be installed."""
    requirement = ENGINES[engine]
    target = cache_directory() / "benchmarks" / "engines" / requirement
    if not target.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), requirement]
        if subprocess.run(command, check=False).returncode:
            print(f"{requirement} cannot be installed: not measured")
            return None
    return Worker("composition", str(target), variables={"GRMLIGHT_BENCH_ENGINE": engine})
