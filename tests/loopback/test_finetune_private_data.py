"""Fine-tuning with data that stay where they are: workers and one from elsewhere say only what they measured in sum."""

from pathlib import Path

import pytest

from farflung.systems.onebyte.records import Summed
from tests.apps.tunings import example, write_tuning
from tests.loopback.finetuning import join, journal, require_one_state, summary
from tests.loopback.fleet import wait_until
from tests.loopback.pretraining import SECONDS_MAX, Command

pytestmark = [pytest.mark.loopback, pytest.mark.slow]

ROUNDS = 6
PRIVATE = (
    "method.shared_slots=true",
    "method.masked=true",
    "method.participants_min=3",
    "method.privacy={epsilon=6.0, noise_multiplier=6.0}",
    "method.num_slots=8",
)


def own_data(folder: Path) -> Path:
    """As many examples as a worker of the run has, and others."""
    lines = example().data.train
    path = folder / "own.tsv"
    path.write_text("\n".join(Path(lines).read_text().splitlines()[:128]) + "\n")
    return path


def test_masked_sums_with_noise_are_all_that_three_machines_tell(tmp_path: Path, commands: list[Command]) -> None:
    """Two workers do not begin without a third, which joins with data of its own."""
    path = write_tuning(tmp_path, rounds=ROUNDS)
    command = Command(tmp_path, str(path), *(word for one in PRIVATE for word in ("--set", one)), kind="finetune")
    commands.append(command)
    wait_until(lambda: "another machine takes part with" in command.text, "the run has a ticket", SECONDS_MAX)
    joiner = join(tmp_path, command, "joiner", "--data", str(own_data(tmp_path)))
    try:
        assert command.wait() == 0, command.output.read_text()
        assert joiner.wait(SECONDS_MAX) == 0
    finally:
        joiner.kill()
        joiner.wait()
    ledger, rounds = journal(command).ledger, list(journal(command).rounds)
    require_one_state(command, ledger.num_rounds)
    assert ledger.num_full_rounds == ROUNDS, "those that lost a member on the way come on top"
    assert sum(isinstance(record, Summed) for record in rounds) == ROUNDS
    assert not any(record.parts for record in rounds), "nobody's entries can be told apart"
    spent = summary(command.folder)["epsilon"]
    assert set(spent) == {"east-worker-0", "west-worker-1", "east-worker-2"}
    assert all(0 < epsilon <= 6.0 for epsilon in spent.values())
