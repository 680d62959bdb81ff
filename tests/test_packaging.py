"""What is shipped fits together: one version, pins inside their ranges, floors kept, files that documents name."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[0-9][A-Za-z0-9.]*)")


def pins():
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines if not line.startswith("#")}


def test_python_and_rust_have_one_version():
    cargo = tomllib.loads((REPOSITORY / "Cargo.toml").read_text())
    assert importlib.metadata.version("grmlight") == cargo["workspace"]["package"]["version"]


def test_constraints_name_versions_and_nothing_else():
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    assert all(PIN.fullmatch(line) for line in lines if not line.startswith("#"))
    assert not [name for name in pins() if name.startswith(("nvidia", "cuda", "triton"))]
    assert pins()["torch"] == "2.13.0"


@pytest.mark.parametrize("text", PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["dev"])
def test_every_dependency_is_pinned_inside_its_range(text):
    requirement = Requirement(text)
    assert pins()[canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_the_malicious_versions_of_lightning_are_excluded(version):
    (lightning,) = [text for text in PROJECT["project"]["dependencies"] if text.startswith("lightning")]
    assert version not in Requirement(lightning).specifier


def test_a_room_imports_only_from_rooms_below_it():
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "document", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in REPOSITORY.glob("docs/*.md"))]
)
def test_files_and_targets_that_a_document_names_exist(document):
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    for path in re.findall(r"\b((?:configs|docs|tests|benchmarks)/[\w./-]*\w\.\w+)\b", text):
        assert (REPOSITORY / path).exists(), path
    targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE):
        assert target in targets, target
