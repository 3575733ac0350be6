"""Alignment with real processes: it learns, although a rollout worker and the trainer are killed; nothing is lost."""

import signal
from pathlib import Path

import pytest

from farflung.apps.runs.history import read_history
from tests.apps.aligned import write_align_run
from tests.loopback.fleet import wait_until
from tests.loopback.pretraining import SECONDS_MAX, Command, summary

pytestmark = pytest.mark.loopback

NUM_STEPS = 24


def wait_stepped(command: Command, num_steps: int) -> None:
    """Wait until the trainer has told of so many steps, but not for a run that has ended."""

    def is_there() -> bool:
        assert command.process.poll() is None, command.output.read_text()
        trainer = read_history(command.folder / "log.jsonl").latest.get("here-trainer")
        return trainer is not None and trainer.values["step"] >= num_steps

    wait_until(is_there, f"{num_steps} steps are made", SECONDS_MAX)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_learns_though_a_worker_and_the_trainer_are_killed(tmp_path: Path, commands: list[Command]) -> None:
    command = Command(tmp_path, str(write_align_run(tmp_path, NUM_STEPS)), kind="align")
    commands.append(command)
    wait_stepped(command, 3)
    command.seat("here-worker-0").send_signal(signal.SIGKILL)
    wait_stepped(command, 6)
    command.seat("here-trainer").send_signal(signal.SIGKILL)
    assert command.wait() == 0, command.output.read_text()
    for victim in ("here-worker-0", "here-trainer"):
        assert f"{victim} ended with status -9 and is started again" in command.text
    found = summary(tmp_path)
    assert found["reward"] > found["reward_before"] + 0.2
    trainer = found["counters"]["here-trainer"]  # pyright: ignore[reportIndexIssue]
    assert trainer["steps"] == NUM_STEPS and trainer["trained"] == NUM_STEPS * 16 * 8
    assert all(int(name.split("/")[1]) <= 1 for name in trainer if name.startswith("staleness/"))
    assert (command.folder / "model" / "config.json").is_file()
