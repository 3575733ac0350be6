"""A pilot of fine-tuning: servers of two sites are looked at, and real processes run over shaped links."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from farflung.apps.fork_server import ForkServer
from tests.loopback.fleet import Fleet, wait_until

pytestmark = [pytest.mark.loopback, pytest.mark.slow]  # a quarter of a minute, and what everybody takes to start

GOAL = ("goal.kind=finetune", "goal.sequence_length=64", "goal.batch_size=2", "goal.num_slots=32")


@pytest.fixture
def sites(tmp_path: Path, folder: Path, forge: ForkServer) -> Iterator[Fleet]:
    """A swarm of two servers at two sites."""
    fleet = Fleet(tmp_path, folder, folder, forge)
    try:
        options = ("serve", str(folder), "--blocks", "0:4", "--threads", "1")
        fleet.start(*options, "--site", "east", "--new-swarm", "--ticket-file", str(fleet.ticket_file))
        wait_until(fleet.ticket_file.exists, "the founder's ticket")
        fleet.start(*options, "--site", "west", "--join", fleet.admin_ticket)
        wait_until(lambda: all("serving blocks" in one.text for one in fleet.programs), "both serve")
        yield fleet
    finally:
        fleet.close()


def test_single_bytes_are_tried_by_real_processes_and_compared(sites: Fleet, folder: Path, tmp_path: Path) -> None:
    answer, kept = tmp_path / "pilot.json", tmp_path / "kept"
    goal = [word for one in (*GOAL, f"model.path={folder}") for word in ("--set", one)]
    length = ("--measure-seconds", "0.5", "--seconds", "15", "--folder", str(kept))
    program = sites.start("pilot", "--join", sites.ticket(), *goal, *length, "--json", str(answer))
    assert program.status == 0, program.text
    told = json.loads(answer.read_text())
    rows = {row["figure"]: row for row in told["rows"]}
    assert told["is_whole"] and told["method"] == "onebyte over all sites"
    assert [name for name in rows if name.startswith("bytes")] == ["bytes from east to west", "bytes from west to east"]
    assert all(row["predicted"] > 0 and row["measured"] > 0 for row in told["rows"])
    seats = sorted(one.name.rstrip("-0123456789") for one in (kept / "seats").iterdir() if one.is_dir())
    home, other = "east", "west"
    if "west-sequencer" in seats:  # beside whoever was measured to be faster
        home, other = other, home
    assert seats == sorted(
        [f"{home}-{kind}" for kind in ("sequencer", "standby", "witness", "worker")] + [f"{other}-worker"]
    )
    assert (kept / "journal.flj").stat().st_size > 0
    # What is told is as long on a busy machine; how often it is asked for, and the shares of a round, are not.
    assert rows[f"bytes from {home} to {other}"]["ratio"] == pytest.approx(1.0, abs=0.3), told["rows"]
