"""Every engine reads the same scores, and the committed matrix says what is measured here."""

import re
from pathlib import Path

import pytest

pytest.importorskip("trl")

from tests import interop
from tests.models import twins

PAGE = Path(__file__).parent.parent / "docs/interop.md"

# Foreign trainers and loaders warn of much.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path


def committed():
    """The page's table by its first three cells."""
    table = PAGE.read_text(encoding="utf-8").partition(interop.BEGIN)[2].partition(interop.END)[0]
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    assert tuple(lines[0]) == interop.COLUMNS
    return {tuple(cells[:3]): cells for cells in lines[2:]}


@pytest.mark.parametrize("row", interop.ROWS, ids=["-".join(row).replace(", ", "-") for row in interop.ROWS])
def test_every_engine_reads_our_scores(row, byte_tokenizer, work):
    base = twins.base_lm(work / "base", byte_tokenizer)
    cells, page = interop.measure(row, base, byte_tokenizer, work), committed()[row]
    assert len(cells) == len(page) == len(interop.COLUMNS)
    for found, written in zip(cells, page, strict=True):
        # The same cells are numbers, and the same have the same reason not to be.
        number = r"\d+e[-+]\d+"
        assert re.sub(number, "#", found) == re.sub(number, "#", written)
        for each in re.findall(number, found) + re.findall(number, written):
            assert float(each) <= 1e-5


def test_the_matrix_is_whole():
    rows = committed()
    assert list(rows) == interop.ROWS
    for cells in rows.values():
        for cell in cells[3:]:
            assert re.fullmatch(r"\d+e-?\+?\d+|n/a: .{10,}|not installed; .*: \d+e[-+]\d+", cell), cell
    assert re.search(
        r"Made with Python [\d.]+, torch [\d.]+, transformers [\d.]+, peft [\d.]+, trl [\d.]+", PAGE.read_text()
    )
