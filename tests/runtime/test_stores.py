"""What a node keeps: key, authorities, small values, journals; across crashes, and for one process at a time."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farflung.runtime.home import Home, default_home
from farflung.runtime.journal import SqliteJournal
from farflung.runtime.store import FileStore

REPOSITORY = Path(__file__).parents[2]


def test_values_by_key(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    assert store.read("a") is None
    keys = ["a", "a/b", "../up", ".", "..", ".hidden", "ä b%2F", "z" * 80]
    for number, key in enumerate(keys):
        store.write(key, bytes([number]))
    assert [store.read(key) for key in keys] == [bytes([number]) for number in range(len(keys))]
    assert store.keys() == sorted(keys)
    assert store.keys("a") == ["a", "a/b"]
    store.write("a", b"new")
    store.delete("a/b")
    store.delete("never there")
    assert (FileStore(tmp_path).read("a"), FileStore(tmp_path).read("a/b")) == (b"new", None)
    assert all(path.parent == tmp_path for path in tmp_path.rglob("*"))


@given(
    st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1, max_size=15), st.binary(max_size=20), max_size=8)
)
@settings(max_examples=15)
def test_any_key_is_a_key(tmp_path_factory: pytest.TempPathFactory, values: dict[str, bytes]) -> None:
    store = FileStore(tmp_path_factory.mktemp("store"))
    for key, value in values.items():
        store.write(key, value)
    assert store.keys() == sorted(values)
    assert [store.read(key) for key in values] == list(values.values())


def test_an_unfinished_write_is_no_value(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.write("a", b"old")
    (tmp_path / f".a.{os.getpid()}").write_bytes(b"half of the n")
    assert (store.read("a"), store.keys()) == (b"old", ["a"])


def run_and_kill(program: str, *arguments: object) -> list[str]:
    """Run a program until it prints "ready", kill it, and return the lines it printed."""
    command = [sys.executable, "-u", "-c", program, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line.strip())
        if line.strip() == "ready":
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    return lines


def test_a_journal_keeps_what_was_synced_and_nothing_else_when_killed(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from farflung.runtime.journal import SqliteJournal
journal = SqliteJournal(Path(sys.argv[1]))
for number in range(50):
    journal.append(b"synced %d" % number)
    if number % 10 == 9:
        journal.sync()
journal.append(b"not synced")
assert len(list(journal.records())) == 51
print("ready")
sys.stdin.read()
"""
    path = tmp_path / "journal.db"
    run_and_kill(program, path)
    for _ in range(2):
        journal = SqliteJournal(path)
        assert list(journal.records()) == [b"synced %d" % number for number in range(50)]
        journal.close()


def test_a_journal_keeps_order_and_gives_up_what_was_not_synced(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "j.db")
    records = [bytes([number]) * number for number in range(5)]
    for record in records[:3]:
        journal.append(record)
    journal.sync()
    journal.sync()
    journal.append(records[3])
    journal.close()
    journal = SqliteJournal(tmp_path / "j.db")
    assert list(journal.records()) == records[:3]
    journal.append(records[4])
    assert list(journal.records()) == [*records[:3], records[4]]
    journal.close()


def test_a_journal_drops_its_oldest_records_for_good(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "j.db")
    for number in range(5):
        journal.append(bytes([number]))
    journal.sync()
    journal.drop(3)
    journal.drop(0)
    assert list(journal.records()) == [b"\x03", b"\x04"]
    journal.close()
    journal = SqliteJournal(tmp_path / "j.db")
    journal.drop(2)
    journal.append(b"new")
    journal.sync()
    assert list(journal.records()) == [b"new"]
    journal.close()


def test_a_journal_on_a_full_disk_says_so_and_keeps_what_was_synced(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "j.db")
    journal.append(b"kept")
    journal.sync()
    journal._database.execute("PRAGMA max_page_count = 4")
    with pytest.raises(OSError, match="the journal cannot be written: database or disk is full"):
        journal.append(b"x" * 100_000)
    journal.close()
    journal = SqliteJournal(tmp_path / "j.db")
    assert list(journal.records()) == [b"kept"]
    journal.close()


def test_a_home_keeps_its_key_for_its_owner_alone(tmp_path: Path) -> None:
    with Home(tmp_path / "home") as home:
        peer = home.identity().peer
        now = time.time()
        authority = home.authority("my swarm/..", now)
        assert home.authority("my swarm/..", now + 5) == authority
        assert home.authority("another", now) != authority
        journal = home.journal("a/b")
        assert home.journal("a/b") is journal
        journal.append(b"x")
        journal.sync()
    with Home(tmp_path / "home") as home:
        assert home.identity().peer == peer
        assert home.authority("my swarm/..", now) == authority
        assert list(home.journal("a/b").records()) == [b"x"]
    secrets = [tmp_path / "home" / "identity.key", *(tmp_path / "home" / "authorities").iterdir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}


def test_a_damaged_key_is_not_replaced_silently(tmp_path: Path) -> None:
    (tmp_path / "identity.key").write_bytes(b"short")
    with Home(tmp_path) as home, pytest.raises(ValueError, match="damaged"):
        home.identity()


def test_two_nodes_do_not_share_a_home(tmp_path: Path) -> None:
    with Home(tmp_path), pytest.raises(ValueError, match=r"another node lives in .* FARFLUNG_HOME"):
        Home(tmp_path)
    with Home(tmp_path):
        pass


def test_a_home_is_free_again_when_its_process_was_killed(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from farflung.runtime.home import Home
home = Home(Path(sys.argv[1]))
try:
    Home(Path(sys.argv[1]))
except ValueError as error:
    print(error)
print("ready")
sys.stdin.read()
"""
    lines = run_and_kill(program, tmp_path)
    assert "another node lives in" in lines[0]
    with Home(tmp_path):
        pass


def test_the_home_is_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARFLUNG_HOME", str(tmp_path / "here"))
    assert default_home() == tmp_path / "here"
    monkeypatch.delenv("FARFLUNG_HOME")
    assert default_home().name == "farflung"
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be a home"):
        Home(tmp_path / "file" / "home")
