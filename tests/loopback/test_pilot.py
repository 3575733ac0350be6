"""A pilot in a swarm of real processes: what was predicted stands beside what was measured."""

import json
import signal
from pathlib import Path

import pytest

from tests.loopback.fleet import Fleet, wait_until

pytestmark = pytest.mark.loopback

SHORT = ("--set", "goal.prompt_tokens=32", "--set", "goal.answer_tokens=16", "--measure-seconds", "1")


def test_serving_is_tried_and_compared(fleet: Fleet, tmp_path: Path) -> None:
    answer, page = tmp_path / "pilot.json", tmp_path / "pilot.html"
    written = ("--json", str(answer), "--html", str(page), "--language", "ja")
    goal = ("--set", "goal.users=2", "--set", f"model.path={fleet.model}")
    program = fleet.start("pilot", "--join", fleet.ticket(), *SHORT, "--seconds", "1", *goal, *written)
    assert program.status == 0, program.text
    told = json.loads(answer.read_text())
    rows = {row["figure"]: row for row in told["rows"]}
    assert told["is_whole"] and told["seconds"] > 0
    assert len(rows) == 5 and all(row["predicted"] > 0 and row["measured"] > 0 for row in told["rows"])
    for figure in ("bytes sent for a prompt", "bytes received for a token of each user"):
        assert rows[figure]["ratio"] == pytest.approx(1.0, abs=0.1), told["rows"]
    assert "実測 / 予測" in page.read_text() and "実測 / 予測" in program.text


def test_an_interrupted_pilot_reports_what_it_has(fleet: Fleet, tmp_path: Path) -> None:
    answer = tmp_path / "pilot.json"
    program = fleet.start("pilot", "--join", fleet.ticket(), *SHORT, "--seconds", "600", "--json", str(answer))
    wait_until(lambda: "asking for 600 s" in program.text or not program.is_alive, "the pilot asks")
    program.send(signal.SIGINT)
    assert program.status == 130, program.text
    told = json.loads(answer.read_text())
    assert not told["is_whole"] and told["verdict"].startswith("Stopped")


def test_what_cannot_be_tried_is_refused_in_a_sentence(fleet: Fleet, tmp_path: Path) -> None:
    ticket = fleet.ticket()
    for options, sentence in (
        (("--set", "goal.kind=align"), "unknown goal that a pilot tries 'align'"),
        (("--seconds", "0"), "--measure-seconds and --seconds must be positive"),
        (("--set", f"model.path={tmp_path}"), str(tmp_path)),
    ):
        program = fleet.start("pilot", "--join", ticket, *options)
        assert program.status == 2, program.text
        assert sentence in program.text and "Traceback" not in program.text
