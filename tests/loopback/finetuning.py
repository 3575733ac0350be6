"""A fine-tuning run of real processes, looked at from outside: what it has told, and what lies on its disks."""

import json
import os
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from farflung.apps.finetune.engine import SEQUENCER, STANDBY, WITNESS
from farflung.apps.runs.history import read_history
from farflung.systems.onebyte.header import Header
from farflung.systems.onebyte.journal import JournalSection, read_journal
from farflung.systems.onebyte.log import Log
from farflung.systems.onebyte.messages import View
from farflung.systems.onebyte.records import Round, decode_record, encode_record
from farflung.systems.onebyte.views import decode_view, members
from farflung.wire.identity import Identity
from tests.loopback.fleet import ROOT, wait_until
from tests.loopback.pretraining import SECONDS_MAX, Command, tracebacks


def summary(folder: Path) -> dict[str, Any]:
    """What the run in this folder has come to."""
    return json.loads((folder / "summary.json").read_text())


def journal(command: Command) -> JournalSection:
    """As its file has it; reading it checks chain and signatures."""
    (section,) = read_journal(BytesIO((command.folder / "journal.flj").read_bytes()), name="journal")
    return section


def told_rounds(command: Command) -> int:
    """How many rounds any worker has ever been told of."""
    points = read_history(command.folder / "log.jsonl").points
    return int(max((point.values.get("round", 0.0) for point in points), default=0.0))


def wait_rounds(command: Command, count: int) -> None:
    """Wait until workers were told of so many rounds, but not for a run that has ended."""

    def are_there() -> bool:
        assert command.process.poll() is None, command.output.read_text()
        return told_rounds(command) >= count

    wait_until(are_there, f"{count} rounds are committed", SECONDS_MAX)


def wait_measured(command: Command, workers: list[str]) -> None:
    """Wait until each of them has measured something."""

    def have() -> bool:
        assert command.process.poll() is None, command.output.read_text()
        measured = {point.seat for point in read_history(command.folder / "log.jsonl").newest() if point.num_steps}
        return measured.issuperset(workers)

    wait_until(have, "all workers measure", SECONDS_MAX)


def home_of(command: Command, kind: str) -> Path:
    """Where the seat of a server keeps what it knows."""
    (home,) = (path for path in (command.folder / "seats").glob(f"*-{kind}") if path.is_dir())
    return home


def newest_view(command: Command) -> View | None:
    """As the witness has accepted it; None: the first one still holds."""
    kept = list((home_of(command, WITNESS) / "store").glob("onebyte-witness-*"))
    return decode_view(kept[0].read_bytes()) if kept else None


def disks(command: Command, view: View | None) -> dict[str, list[bytes]]:
    """The journals of those who hold all that counts, as their doors wrote them."""
    found: dict[str, list[bytes]] = {}
    for kind in (SEQUENCER, STANDBY):
        home = home_of(command, kind)
        peer = Identity((home / "identity.key").read_bytes()).peer
        if peer in members(view) if view is not None else kind == SEQUENCER:
            (path,) = (home / "journals").glob("*.db")
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
                found[kind] = [record for (record,) in database.execute("SELECT record FROM records ORDER BY number")]
            database.close()
    return found


@dataclass(frozen=True)
class Seen:
    """What was committed at some moment."""

    num_rounds: int
    """Told by then."""
    entries: dict[str, list[bytes]]
    """Of the disks that hold them, a little later."""

    def _records(self, header: Header) -> list[list[bytes]]:
        """Of each disk: everything up to the last round that was told."""
        found: list[list[bytes]] = []
        for entries in self.entries.values():
            contents = Log.open(header, entries).contents
            ends = [number for number, one in enumerate(contents, 1) if isinstance(decode_record(one), Round)]
            assert len(ends) >= self.num_rounds, "a round was told that its sequencer does not hold"
            found.append(contents[: ends[self.num_rounds - 1] if self.num_rounds else 0])
        return found

    def is_kept(self, header: Header, final: list[bytes]) -> bool:
        """Whether a journal of these records begins with all of it, byte for byte."""
        return all(final[: len(records)] == records for records in self._records(header))


def look(command: Command) -> Seen:
    """What is committed now."""
    num_rounds = told_rounds(command)
    return Seen(num_rounds, disks(command, newest_view(command)))


def require_one_state(command: Command, count: int) -> None:
    """The journal is whole, all who kept it have the same, and its replay is what every worker came to in the end."""
    section = journal(command)
    assert section.ledger.is_closed and summary(command.folder)["rounds"] == section.ledger.num_rounds == count
    final = [encode_record(record) for record in section.records]
    held = disks(command, newest_view(command))
    assert held and all(Log.open(section.header, entries).contents == final for entries in held.values())
    entries = [json.loads(line) for line in (command.folder / "log.jsonl").read_text().splitlines()]
    told = {one["decision"] for one in entries if one["kind"] == "decision"}
    assert told == {f"its weights have the state {summary(command.folder)['state']}"}
    assert tracebacks(command) == {} and "Traceback" not in command.text


def join(tmp_path: Path, command: Command, name: str, *arguments: str) -> subprocess.Popen[bytes]:
    """`farflung join` as another machine would."""
    variables = {"FARFLUNG_HOME": str(tmp_path / name), "FARFLUNG_CACHE": str(tmp_path / "cache")}
    return subprocess.Popen(
        [sys.executable, "-m", "farflung", "join", (command.folder / "ticket").read_text(), *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
    )
