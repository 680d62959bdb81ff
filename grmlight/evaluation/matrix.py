"""The matrix of the GRM paper's tables: the commands that train, evaluate and compare its methods.

The recipes (`configs/gemma-2b-it.yaml`, ...) hold the paper's hyperparameters, `configs/paper/` its data sizes and what
its baselines need on top. The lines are for a shell in the root of a checkout, where `configs/` lies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

_LINEAR = "configs/paper/linear_head.yaml"

METHODS: dict[str, tuple[str, ...]] = {
    "baseline": ("configs/baselines/vanilla.yaml", _LINEAR),
    "baseline_mlp": ("configs/baselines/vanilla.yaml",),
    "frozen": ("configs/paper/frozen.yaml",),
    "margin": ("configs/baselines/margin.yaml", _LINEAR),
    "label_smoothing": ("configs/baselines/label_smoothing.yaml", _LINEAR),
    "ensemble_mean": ("configs/baselines/ensemble.yaml", _LINEAR),
    "ensemble_min": ("configs/baselines/ensemble_min.yaml", _LINEAR),
    "grm_dpo": ("configs/regularizers/dpo.yaml",),
    "grm_dpo_noref": ("configs/regularizers/dpo_noref.yaml",),
    "grm_sft": ("configs/regularizers/sft.yaml",),
    "grm_sft_linear": ("configs/regularizers/sft.yaml", _LINEAR),
}
"""The append files of each method. The paper's baselines have a linear head; `baseline_mlp` has GRM's."""

_OUT_OF_DISTRIBUTION = "hhh,mtbench,rewardbench"
_TABLE_7 = ("baseline", "frozen", "grm_sft")


@dataclasses.dataclass(frozen=True)
class Block:
    """Runs that are compared with each other.

    Attributes:
        name: their folder below `runs/paper`.
        about: what they are.
        configs: the recipe, and the data's size.
        methods: keys of `METHODS`.
        benchmarks: of `grmlight evaluate`; empty where the runs' own validation is all there is.
        program: what starts a run.
    """

    name: str
    about: str
    configs: tuple[str, ...]
    methods: tuple[str, ...] = tuple(METHODS)
    benchmarks: str = ""
    program: str = "grmlight"

    def fit(self, method: str) -> str:
        """The command that trains a method."""
        files = [*self.configs, *_files(self.name, method)]
        configs = " ".join(f"--config {file}" for file in ("configs/grm.yaml", *files))
        logger = {"": "CSVLogger", ".save_dir": "runs/paper", ".name": f"{self.name}/{method}"}
        place = " ".join(f"--trainer.logger{key} {value}" for key, value in logger.items())
        return f"{self.program} fit {configs} {place}"

    def lines(self) -> Iterator[str]:
        """All commands, headed by a comment."""
        runs = f"runs/paper/{self.name}/*/version_0"
        yield f"# {self.name}: {self.about}"
        yield from map(self.fit, self.methods)
        if self.benchmarks:
            yield f'for run in {runs}; do grmlight evaluate "$run" --benchmarks {self.benchmarks}; done'
        yield f"grmlight compare {runs}"


def _files(block: str, method: str) -> tuple[str, ...]:
    # The embedded world's backbone is trained whole, so there are no adapters to take away.
    return ("configs/baselines/frozen.yaml",) if (block, method) == ("world", "frozen") else METHODS[method]


def _unified_feedback(recipe: str, model: str) -> list[Block]:
    sizes = {"400K": "Tables 1 and 3", "40K": "Tables 2 and 4", "8K": "Table 7; the stride is a guess"}
    return [
        Block(
            f"{recipe}/{size}",
            f"{model} with LoRA on {size} pairs of Unified-Feedback ({tables})",
            (f"configs/{recipe}.yaml", f"configs/paper/{size.lower()}.yaml"),
            _TABLE_7 if size == "8K" else tuple(METHODS),
            f"unified_feedback,{_OUT_OF_DISTRIBUTION}",
        )
        for size, tables in sizes.items()
    ]


BLOCKS = [
    Block("world", "the embedded world, a laptop and minutes", ()),
    *_unified_feedback("gemma-2b-it", "gemma-2b-it"),
    *_unified_feedback("mistral-7b-instruct", "Mistral-7B-Instruct-v0.2"),
    Block(
        "llama3-8b-full",
        "Llama-3-8B-Instruct, all parameters, preference_700K (Table 5); on 8 GPUs",
        ("configs/llama3-8b-full.yaml", "configs/fsdp.yaml"),
        ("baseline", "grm_sft"),
        "rewardbench",
        "torchrun --nproc-per-node 8 -m grmlight",
    ),
]
"""The whole matrix."""


def launch_lines() -> str:
    """Every command of the matrix."""
    return "\n\n".join("\n".join(block.lines()) for block in BLOCKS)
