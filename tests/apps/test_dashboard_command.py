"""`farflung dashboard` refuses what cannot work in one sentence with status 2, before anything is loaded."""

import importlib.util
import socket
from pathlib import Path
from typing import Any

import pytest

from farflung.apps import cli


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command says; its status must be 2."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["dashboard", *arguments])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_without_a_ticket_it_says_how_to_get_one(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nicegui")
    assert "a ticket is needed: give --join TICKET" in refused(capsys)
    assert "this is not a ticket" in refused(capsys, "--join", "nonsense")


def test_without_its_extra_it_names_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def without(name: str, *more: Any) -> Any:
        return None if name == "nicegui" else real(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    assert "pip install 'farflung[dashboard]'" in refused(capsys, "--join", "nonsense")


def test_a_folder_without_a_run_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("nicegui")
    assert f"there is no run in {tmp_path}" in refused(capsys, "--run", str(tmp_path))


def test_a_port_in_use_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("nicegui")
    (tmp_path / "run.toml").write_text('[run]\nkind = "pretrain"\nname = "first"\n')
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        sentence = refused(capsys, "--run", str(tmp_path), "--port", str(port))
    assert f"cannot listen on 127.0.0.1:{port}" in sentence and "choose another --port" in sentence
