"""What tests of alignment runs on real processes wait for, and what must be true at their end."""

from pathlib import Path

from farflung.apps.runs.history import read_history
from tests.loopback.fleet import wait_until
from tests.loopback.pretraining import SECONDS_MAX, Command, summary


def wait_stepped(command: Command, num_steps: int) -> None:
    """Wait until the trainer has told of so many steps, but not for a run that has ended."""

    def is_there() -> bool:
        assert command.process.poll() is None, command.output.read_text()
        trainer = read_history(command.folder / "log.jsonl").latest.get("here-trainer")
        return trainer is not None and trainer.values["step"] >= num_steps

    wait_until(is_there, f"{num_steps} steps are made", SECONDS_MAX)


def check_complete(folder: Path, num_steps: int) -> dict[str, int]:
    """Every prompt was trained on once, and nothing that was too old; the trainer's counts."""
    trainer = summary(folder)["counters"]["here-trainer"]  # pyright: ignore[reportIndexIssue]
    assert trainer["steps"] == num_steps and trainer["trained"] == num_steps * 16 * 8
    assert all(int(name.split("/")[1]) <= 1 for name in trainer if name.startswith("staleness/"))
    assert (folder / "run" / "model" / "config.json").is_file()
    return trainer
