"""Runs of the cluster's learning bench are kept and taken again, and its grids are alike in size."""

import dataclasses
import json
from pathlib import Path

import pytest

from bench.halos_methods import GRIDS, SETTINGS
from bench.halos_runs import Job, Runs
from farflung.learn.rules import Nesterov
from farflung.systems.desync.config import DesyncConfig
from farflung.systems.hierarchy.config import HierarchyConfig

JOB = Job("DiLoCo", 0, 1, 640, None)


def test_a_kept_run_is_not_made_again(tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    kept.write_text(json.dumps({"key": JOB.key, "run": JOB.told, "result": [[0.0, 0, 3.0], [10.0, 640, 2.0]]}) + "\n")
    before = kept.read_bytes()
    curve = Runs(1, kept).curves([JOB])[JOB]
    assert (curve.final.loss, curve.seconds_to(2.5)) == (2.0, 5.0)
    assert kept.read_bytes() == before


@pytest.mark.parametrize(
    "change", [{"number": 1}, {"seed": 2}, {"num_steps": 641}, {"text": Path("x")}, {"bandwidth": 0.1}]
)
def test_runs_that_differ_have_keys_that_differ(change: dict[str, object]) -> None:
    assert dataclasses.replace(JOB, **change).key != JOB.key


def test_methods_are_tuned_alike_and_with_what_was_published() -> None:
    assert len({len(grid) for grid in GRIDS.values()}) == 1
    fingerprints = [setting.config(640).fingerprint for grid in SETTINGS.values() for setting in grid]
    assert len(set(fingerprints)) == len(fingerprints)
    assert HierarchyConfig(budget_steps=640) in [setting.config(640) for setting in GRIDS["HALoS"]]
    rules = [setting.config(640) for setting in GRIDS["DiLoCo"]]
    assert Nesterov(learning_rate=0.7, momentum=0.9) in [rule.outer for rule in rules if isinstance(rule, DesyncConfig)]


def test_no_processes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 process"):
        Runs(0, None)
