"""The shipped table says what the gate finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from grmlight.models import architectures

PAGE = (Path(__file__).parents[2] / "docs" / "architectures.md").read_text(encoding="utf-8")
SOME = "llama gemma2 gpt_oss stablelm deepseek_v3 nemotron bloom falcon gptj lfm2 llama4_text mamba cpmant dbrx".split()


def shipped() -> dict[str, str]:
    lines = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| type")]
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines}


def test_every_type_has_one_row():
    assert list(shipped()) == architectures.model_types()


@pytest.mark.parametrize("model_type", SOME)
def test_rows_are_what_the_gate_finds_now(model_type):
    assert str(architectures.row(model_type)) == shipped()[model_type]


def test_a_reader_learns_what_it_was_made_with(tmp_path):
    architectures.main(["--out", str(tmp_path / "page.md"), "llama", "bloom"])
    page = (tmp_path / "page.md").read_text()
    assert "1 packed, 1 padded, 0 refused, 0 unknown" in page
    head = next(line for line in PAGE.splitlines() if line.startswith("Made with"))
    assert "python -m grmlight.models.architectures --out docs/architectures.md" in head
    assert "torch 2." in head
    assert "transformers 5." in head
