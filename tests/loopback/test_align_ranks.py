"""A trainer of two real processes: one of them is killed, and nothing that was sampled is lost."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.apps.aligned import write_align_run
from tests.loopback.aligning import check_complete, wait_stepped
from tests.loopback.pretraining import Command, summary, tracebacks

pytestmark = pytest.mark.loopback


@pytest.mark.timeout(600)
def test_a_trainer_may_be_two_processes(tmp_path: Path, lead: Callable[..., Command]) -> None:
    command = lead(str(write_align_run(tmp_path, 3)), "--set", "training.ranks=2", kind="align")
    assert command.wait() == 0, command.output.read_text()
    check_complete(tmp_path, 3)
    assert (command.folder / "seats" / "here-trainer" / "ranks" / "rank-1.log").is_file()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("override", ["training.parallelism=ddp", "training.parallelism=fsdp", "model.adapter_rank=4"])
def test_a_trainer_of_two_ranks_learns_whichever_is_killed(
    override: str, tmp_path: Path, lead: Callable[..., Command]
) -> None:
    path = write_align_run(tmp_path, 24)
    command = lead(
        str(path),
        *("--set", "training.ranks=2"),
        *("--set", "sync.audit_share=0.1"),
        *("--set", override),
        kind="align",
    )
    wait_stepped(command, 4)
    (other_rank,) = command.seat("here-trainer").children()
    other_rank.send_signal(signal.SIGKILL)
    wait_stepped(command, 14)
    command.seat("here-trainer").send_signal(signal.SIGKILL)
    assert command.wait() == 0, command.output.read_text()
    for status in (1, -9):
        assert f"here-trainer ended with status {status} and is started again" in command.text
    assert "rank-1 ended with status -9" in (command.folder / "seats" / "here-trainer-1.log").read_text()
    assert not tracebacks(command)
    assert summary(tmp_path)["reward"] > summary(tmp_path)["reward_before"] + 0.1
    assert check_complete(tmp_path, 24)["banned"] == 0
