"""The table of architectures: what the gate finds for every causal LM that transformers knows.

python -m grmlight.models.architectures --out docs/architectures.md
"""

from __future__ import annotations

import argparse
import dataclasses
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from grmlight.models.gate import packs, pads

_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "head_dim": 128}

_MISSING: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"num_experts_per_tok": 2},
    "hunyuan_v1_dense": _ROPE,
    "hunyuan_v1_moe": _ROPE,
    "lfm2": {"layer_types": ["conv", "full_attention"] * 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": _ROPE,
    "nemotron": {"num_key_value_heads": 8},
}
"""What every published config of a type has and its class leaves open."""

_HEAD = """\
# Architectures

What the gate finds on small random twins of the default config of every causal LM type in transformers' mapping.

- **packed**: prompts are shared and nothing is padded; proven equal to scoring one by one.
- **padded**: runs on length-bucketed padding, proven equal to scoring one by one. Slower.
- **refused**: neither is right; such a model is not trained.
- **unknown**: no small twin of the default config can be built and run; a model of this type is probed itself when it
  is loaded, and then padded or refused.
- **log-probs**: whether penalties on log-probs (text generation, DPO) are the model's own; without them only penalties
  on rewards are accepted.

A model's own config decides: the gate runs again whenever one is loaded.
"""

_COMMAND = "python -m grmlight.models.architectures --out docs/architectures.md"


@dataclasses.dataclass(frozen=True)
class Row:
    """One type's line of the table."""

    model_type: str
    runs: str
    logps: bool | None
    reason: str

    def __str__(self) -> str:
        known = {True: "yes", False: "no", None: "unknown"}[self.logps]
        return f"| {self.model_type} | {self.runs} | {known} | {self.reason.replace('|', '/')} |"


def model_types() -> list[str]:
    """Every type that transformers can make a causal LM of."""
    return sorted(name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name in CONFIG_MAPPING)


def row(model_type: str) -> Row:
    """Ask the gate about a type's default config."""
    try:
        config = _config(model_type)
    except Exception as error:  # whatever a foreign config class raises
        return Row(model_type, "unknown", None, f"it has no default config: {_brief(error)}")
    found = packs(config)
    if found.ok:
        return Row(model_type, "packed", found.logps, "")
    fault = pads(config)
    if fault is None:
        return Row(model_type, "unknown", found.logps, _brief(found.reason))
    if fault:
        return Row(model_type, "refused", found.logps, f"{_brief(found.reason)}; {_brief(fault)}")
    return Row(model_type, "padded", found.logps, _brief(found.reason))


def table(types: list[str]) -> str:
    """The page, for these types."""
    rows = [row(name) for name in types]
    counts = ", ".join(
        f"{sum(each.runs == runs for each in rows)} {runs}" for runs in ("packed", "padded", "refused", "unknown")
    )
    made = f"Made with torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}: `{_COMMAND}`"
    lines = ["| type | runs | log-probs | why it does not pack |", "|---|---|---|---|", *map(str, rows)]
    return "\n".join([_HEAD, f"{made}. {counts}.", "", *lines, ""])


def _config(model_type: str) -> PretrainedConfig:
    config_class = CONFIG_MAPPING[model_type]
    entries = _MISSING.get(model_type, {})
    config = config_class(**entries)
    if getattr(config, "is_decoder", None) is False and not config.is_encoder_decoder:
        # An encoder unless it is told.
        config = config_class(**{**entries, "is_decoder": True})
    return config


def _brief(reason: object) -> str:
    return " ".join(str(reason).split())


def main(arguments: list[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description="Make the table of architectures")
    parser.add_argument("--out", type=Path, help="the file to write; without it the page is printed")
    parser.add_argument("types", nargs="*", help="model types; default: all")
    options = parser.parse_args(arguments)
    transformers.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    page = table(options.types or model_types())
    if options.out is None:
        print(page)
    else:
        options.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
