import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from grmlight.data.files import cache_directory
from grmlight.lab import build, files, world_files
from grmlight.lab.files import ASSETS, WorldFiles
from grmlight.lab.pairs import read_rows
from grmlight.lab.pretrain import Recipe
from grmlight.lab.world import TESTS, World


@pytest.fixture
def builds(monkeypatch):
    """Counts builds, which copy the shipped world instead."""
    built = []

    def copy(seed, directory):
        built.append(seed)
        shutil.copytree(ASSETS, directory)
        (directory / "world.json").write_text(json.dumps({"seed": seed, "gold_mean": 6.0, "gold_deviation": 1.0}))

    monkeypatch.setattr(build, "build_world", copy)
    return built


def test_the_shipped_world(shipped):
    assert shipped.seed == 0
    assert shipped.gold.world == World(0)
    assert tuple(shipped.tests) == TESTS == ("id", "ood_topic", "ood_template", "ood_all", "good", "hack")
    assert all(path.exists() for path in (shipped.lm, shipped.tokenizer, shipped.train, *shipped.tests.values()))
    assert (shipped.tokenizer / "tokenizer.json").exists()


def test_the_shipped_world_is_small():
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < 4_000_000


def test_files_are_readable_by_everyone():
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in ASSETS.rglob("*") if path.is_file())


def test_the_shipped_world_needs_no_cache(tmp_path, builds):
    world_files(0, tmp_path / "cache")
    assert not builds
    assert not (tmp_path / "cache").exists()


def test_another_world_is_built_once(tmp_path, builds):
    first = world_files(7, tmp_path)
    assert first == world_files(7, tmp_path)
    assert builds == [7]
    assert first.gold.world == World(7)
    assert (first.gold.mean, first.gold.deviation) == (6.0, 1.0)
    assert [path.name.split("-")[0] for path in tmp_path.iterdir()] == ["7"]
    world_files(8, tmp_path)
    assert builds == [7, 8]


def test_changed_code_makes_another_world(tmp_path, builds, monkeypatch):
    world_files(7, tmp_path)
    monkeypatch.setattr(files, "MAKERS", files.MAKERS[:-1])
    world_files(7, tmp_path)
    assert builds == [7, 7]


def test_a_build_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(seed, directory):
        directory.mkdir()
        raise OSError("no space left")

    monkeypatch.setattr(build, "build_world", fail)
    with pytest.raises(OSError, match="no space left"):
        world_files(7, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_of_two_builds_one_wins(tmp_path, builds, monkeypatch):
    copy = build.build_world

    def race(seed, directory):
        copy(seed, directory)
        shutil.copytree(directory, tmp_path / files.world_key(seed), dirs_exist_ok=True)

    monkeypatch.setattr(build, "build_world", race)
    assert world_files(7, tmp_path).seed == 7
    assert [path.name for path in tmp_path.iterdir()] == [files.world_key(7)]


def test_what_killed_builds_left_is_swept(tmp_path, builds):
    stale, fresh = tmp_path / ".grmlight-tmp-999999999-x", tmp_path / f".grmlight-tmp-{os.getpid()}-x"
    stale.mkdir()
    fresh.mkdir()
    world_files(7, tmp_path)
    assert not stale.exists()
    assert fresh.exists()


def test_the_cache_can_be_moved(monkeypatch, tmp_path):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv("GRMLIGHT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "grmlight"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "grmlight"


def test_a_folder_that_is_no_world_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no world\.json"):
        WorldFiles.open(tmp_path)


def test_a_small_world_is_drawn_again_from_its_lm(shipped, tmp_path):
    printed = [build.redraw_world(0, shipped.lm, tmp_path / name, train=30, test=10) for name in "ab"]
    assert printed[0] == printed[1]
    opened = [dataclasses.asdict(WorldFiles.open(tmp_path / name)) for name in "ab"]
    assert opened[0]["gold"] == opened[1]["gold"]
    for first in sorted((tmp_path / "a").rglob("*")):
        second = tmp_path / "b" / first.relative_to(tmp_path / "a")
        assert first.is_dir() or first.read_bytes() == second.read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_shipped_world_is_made_again_from_nothing(shipped, tmp_path):
    printed = build.build_world(0, tmp_path)
    assert 1.1 < float(printed.split()[1]) < 1.3
    made = WorldFiles.open(tmp_path)
    assert made.gold.mean == pytest.approx(shipped.gold.mean, abs=0.25)
    assert made.gold.deviation == pytest.approx(shipped.gold.deviation, abs=0.2)
    for name in TESTS:
        assert len(read_rows(made.tests[name])) == len(read_rows(shipped.tests[name])) == 500


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_another_world_is_made_from_nothing(tmp_path, monkeypatch):
    recipe = Recipe(documents=16_000)
    whole = build.build_world
    monkeypatch.setattr(build, "build_world", lambda seed, out: whole(seed, out, recipe, train=100, test=50))
    made = world_files(5, tmp_path)
    assert len(read_rows(made.train)) == 100
    assert 5 < made.gold.mean < 7.5
