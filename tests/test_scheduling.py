"""How the suite is dealt out: every test once, files whole, and real processes beside each other only at the end."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.scheduling import REAL_PROCESSES, ROOT, group_of, next_scope

REAL, OTHER_REAL, QUICK = (
    f"{REAL_PROCESSES}fleet",
    f"{REAL_PROCESSES}tests/loopback/test_pretrain.py",
    "tests/wire/test_parts.py",
)

TESTS = """
import os, pytest
{mark}
@pytest.mark.parametrize("number", range(4))
def test_it(number):
    with open(os.environ["TOLD"], "a") as told:
        told.write(f"{{__file__}} {{os.environ['PYTEST_XDIST_WORKER']}}\\n")
"""


@pytest.mark.parametrize(
    ("waiting", "at_work", "taken"),
    [
        ([REAL, OTHER_REAL, QUICK], [], REAL),
        ([OTHER_REAL, QUICK], [REAL], QUICK),
        ([OTHER_REAL, QUICK], [QUICK], OTHER_REAL),
        ([OTHER_REAL], [REAL], OTHER_REAL),
    ],
)
def test_real_processes_run_beside_each_other_only_when_all_else_is_done(
    waiting: list[str], at_work: list[str], taken: str
) -> None:
    assert next_scope(waiting, at_work) == taken


def test_files_that_share_the_fleet_are_one_group() -> None:
    groups = {path.name: group_of(str(path.relative_to(ROOT))) for path in ROOT.glob("tests/*/test_*.py")}
    assert groups["test_kill.py"] == groups["test_departures.py"] == groups["test_rendezvous.py"] == REAL
    assert groups["test_pretrain.py"] == OTHER_REAL
    assert groups["test_parts.py"] == QUICK


def test_two_processes_share_files_whole(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_xdist_make_scheduler\n")
    (tmp_path / "pytest.ini").write_text(f"[pytest]\npythonpath = {ROOT}\nmarkers = loopback\n")
    for number in range(6):
        mark = "@pytest.mark.loopback" if number < 3 else ""
        (tmp_path / f"test_{number}.py").write_text(TESTS.format(mark=mark))
    script = (
        "import sys, pathlib, pytest, tests.scheduling\n"
        f"tests.scheduling.ROOT = pathlib.Path({str(tmp_path)!r})\n"
        "sys.exit(pytest.main(['-q', '--numprocesses', '2', '-p', 'no:cacheprovider']))"
    )
    environment = {"TOLD": str(tmp_path / "told"), "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    told = (tmp_path / "told").read_text().split()
    workers: dict[str, set[str]] = {}
    for file, worker in zip(told[::2], told[1::2], strict=True):
        workers.setdefault(file, set()).add(worker)
    assert len(told) == 2 * 24 and len(workers) == 6
    assert all(len(taken) == 1 for taken in workers.values())
    assert len(set.union(*workers.values())) == 2
