"""Private data from the command: shared slots, masks and budgets of privacy in virtual time; mistakes are sentences."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from farflung.apps.finetune.job import Finetuning
from farflung.apps.finetune.run_file import FINETUNE
from farflung.apps.runs.command import Wish, do_run
from farflung.apps.runs.history import read_history
from farflung.apps.runs.seats import Seat
from farflung.systems.onebyte.records import Summed
from tests.apps.test_finetune_command import journal, simulate
from tests.apps.tunings import write_tuning

SHARED = "method.shared_slots=true"
PRIVATE = (SHARED, "method.privacy={epsilon=6.0}", "method.num_slots=8")


def states_told(folder: Path) -> set[str]:
    """What workers have said that their weights are in the end."""
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    said = [one["decision"] for one in entries if one["kind"] == "decision"]
    return {sentence.rpartition(" ")[2] for sentence in said if "weights have the state" in sentence}


def test_everybody_measures_all_slots_on_its_own_share(tmp_path: Path) -> None:
    path = write_tuning(tmp_path, rounds=4, workers=2)
    summary = simulate(path, SHARED, 'method.mean="trimmed"', "method.participants_min=2")
    assert set(summary["slots"].values()) == {4 * 16} and summary["entries"] == 4 * 4 * 16
    section = journal(tmp_path / "run")
    shared = section.header.shared_slots
    assert shared is not None and (shared.mean, shared.participants_min, shared.privacy) == ("trimmed", 2, None)
    bytes_of = {part.participant: part.codes for record in section.rounds for part in record.parts}
    assert len(set(bytes_of.values())) == 4, "each has data of its own"
    assert states_told(tmp_path / "run") == {summary["state"]}


def test_masks_leave_sums_alone_and_budgets_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tuning(tmp_path, rounds=4, workers=2)
    summary = simulate(path, *PRIVATE, "method.masked=true")
    section = journal(tmp_path / "run")
    assert sum(isinstance(record, Summed) for record in section.rounds) == 4
    assert not any(record.parts for record in section.rounds), "nobody's entries can be told apart"
    spent = list(summary["epsilon"].values())
    assert len(spent) == 4 and all(4 < epsilon <= 6.0 for epsilon in spent) and summary["delta"] == 1e-5
    points = read_history(tmp_path / "run" / "log.jsonl").points
    assert {0.0} < {point.values["epsilon"] for point in points}, "it grows while the run goes on"
    assert states_told(tmp_path / "run") == {summary["state"]}
    said = " ".join(capsys.readouterr().out.split())
    assert "epsilon 6 at delta 1e-05 pays for 4 rounds of 8 slots" in said
    assert f"slots measured, epsilon {spent[0]:.3f}" in said


def test_a_run_whose_budgets_are_spent_ends_with_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tuning(tmp_path, rounds=50)
    budget = "method.privacy={epsilon=6.0, noise_multiplier=2.0}"
    summary = simulate(path, SHARED, "method.num_slots=8", "method.participants_min=2", budget)
    said = " ".join(capsys.readouterr().out.split())
    paid = re.search(r"pays for (\d+) rounds of 8 slots with noise of 2 clips of 0.3, so that the run ends", said)
    assert paid is not None and 1 <= int(paid[1]) < 50
    assert summary["rounds"] == int(paid[1])
    assert "It ended before its 50 rounds, as workers had spent their budgets of privacy" in said
    assert "its budget is spent" in said and states_told(tmp_path / "run") == {summary["state"]}


def test_what_is_shown_is_the_same_run() -> None:
    method = {"shared_slots": True, "masked": True, "privacy": {"epsilon": 3.0}}
    run = FINETUNE.read({"method": method, "regions": [{"name": "here", "workers": 3}]})
    assert FINETUNE.read(FINETUNE.tables(run)) == run and run.onebyte.num_needed == 3
    assert run.onebyte.num_slots == 8 and not run.onebyte.is_exact, "settings of a first try with noise"


REFUSED = [
    (("method.masked=true",), "masked is about private data: set shared_slots = true"),
    (("method.privacy={epsilon=1.0}",), "privacy is about private data: set shared_slots = true"),
    ((SHARED, "method.masked=true", 'method.mean="trimmed"'), "a trimmed mean compares single entries"),
    ((SHARED, "method.masked=true", "method.participants_min=2"), "masks need 3 to 256 participants"),
    ((SHARED, "method.trim_percent=60", 'method.mean="trimmed"'), "1 to 49 percent can be left out"),
    ((SHARED, "method.audit_share=0.5"), "audit_share has no effect on private data"),
    ((*PRIVATE, "method.is_exact=true"), "privacy clips what every example says: leave is_exact out"),
    ((SHARED, "method.privacy={epsilon=0.0}"), "privacy.epsilon is 0; it must be above 0"),
    ((SHARED, "method.privacy={clip=0.0}"), "clip is 0; it must be above 0"),
    ((SHARED, "method.privacy={epsilons=1.0}"), "unknown key 'epsilons' in [method.privacy]: did you mean 'epsilon'?"),
    ((SHARED, "objective.label_words={}"), "name them in objective.label_words"),
    ((SHARED, "method.participants_min=3"), "nobody joins a simulation: give regions with more workers"),
    ((*PRIVATE, "training.batch_size=129"), "a batch of 129 cannot be drawn from the 128 examples of one worker"),
]


@pytest.mark.parametrize(("overrides", "sentence"), REFUSED)
def test_what_does_not_fit_together_is_refused(overrides: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    path = write_tuning(tmp_path)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        do_run(Finetuning(), Wish(path=path, overrides=overrides, is_simulated=True))
    assert not (tmp_path / "run").exists()


def test_who_joins_brings_data_where_they_are_private_and_only_there(tmp_path: Path) -> None:
    path, job = write_tuning(tmp_path), Finetuning()
    joiner = Seat(index=9, kind="worker", region="east", number=2, is_remote=True)
    with pytest.raises(ValueError, match="join with --data FILE"):
        job.gather_for(FINETUNE.load(path, (SHARED,)), joiner, None, None)
    with pytest.raises(ValueError, match="leave out --data"):
        job.gather_for(FINETUNE.load(path), joiner, None, tmp_path / "own.tsv")
    own = tmp_path / "own.tsv"
    own.write_text("text\tlabel\nbaba baba\tgood\nbabe\tbad\n")
    run = FINETUNE.load(path, (SHARED,))
    materials: Any = job.gather_for(run, joiner, None, own)
    assert len(materials.rows_of(joiner)) == 2
    assert materials.fingerprint == job.gather(run).fingerprint, "nobody learns even the hash of what is private"
