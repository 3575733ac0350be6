"""`farflung journal` on runs with private data: what it shows, what it revokes, and what it cannot."""

import json
from pathlib import Path

from typer.testing import CliRunner

from farflung.apps.cli import app
from farflung.systems.onebyte.journal import JournalWriter
from farflung.systems.onebyte.sharing import Privacy, SharedSlots
from tests.onebytes import SimulatedOneByte, header_of
from tests.systems.onebyte.test_onebyte_runs import settings

MASKED = SharedSlots(is_masked=True, participants_min=3)
TRIMMED = SharedSlots(mean="trimmed", privacy=Privacy(clip=0.5, noise_multiplier=2.0))


def written(folder: Path, shared: SharedSlots) -> Path:
    path = folder / "run.flj"
    workers = dict.fromkeys("abc", 1.0)
    with SimulatedOneByte(settings(num_rounds=3), workers, header=header_of(shared=shared)) as run:
        run.run(deadline=200)
        with path.open("wb") as file:
            writer = JournalWriter(file, run.header)
            for record in run.sequencer.records:
                writer.add(record)
    return path


def test_masked_journals_are_shown_and_nothing_is_revoked_from_them(tmp_path: Path) -> None:
    path = written(tmp_path, MASKED)
    (run,) = json.loads(CliRunner().invoke(app, ["journal", "show", str(path), "--json"]).output)
    assert run["data"] == "private, mean over participants, sums under masks"
    assert [each["entries"] for each in run["participants"]] == [48, 48, 48] and run["entries"] == 144
    assert "all signed" in CliRunner().invoke(app, ["journal", "verify", str(path)]).output
    refused = CliRunner().invoke(app, ["journal", "revoke", str(path), "b", "-o", str(tmp_path / "new.flj")])
    assert isinstance(refused.exception, ValueError) and "tells only sums" in str(refused.exception)
    assert not (tmp_path / "new.flj").exists()


def test_a_participant_of_a_trimmed_mean_is_revoked(tmp_path: Path) -> None:
    path = written(tmp_path, TRIMMED)
    (run,) = json.loads(CliRunner().invoke(app, ["journal", "show", str(path), "--json"]).output)
    assert run["data"].endswith("25 % at either end over participants, noise of 2 times the clip 0.5")
    done = CliRunner().invoke(app, ["journal", "revoke", str(path), "b", "-o", str(tmp_path / "new.flj")])
    assert done.exit_code == 0, done.output
    (after,) = json.loads(CliRunner().invoke(app, ["journal", "show", str(tmp_path / "new.flj"), "--json"]).output)
    assert [each["entries_revoked"] for each in after["participants"] if each["name"] == "b"] == [48]
