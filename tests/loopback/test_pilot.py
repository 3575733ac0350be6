"""A pilot in a swarm of real processes: what was predicted stands beside what was measured."""

import json
import signal
from pathlib import Path

import pytest

from tests.loopback.fleet import Fleet, wait_until
from tests.loopback.plans import FINETUNE_PLAN, PRETRAIN_PLAN

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
        (("--set", "goal.kind=aline"), "unknown goal that a pilot tries 'aline'"),
        (("--seconds", "0"), "--measure-seconds and --seconds must be positive"),
        (("--set", f"model.path={tmp_path}"), str(tmp_path)),
    ):
        program = fleet.start("pilot", "--join", ticket, *options)
        assert program.status == 2, program.text
        assert sentence in program.text and "Traceback" not in program.text


@pytest.mark.slow
def test_pretraining_is_tried_without_a_swarm_and_compared(fleet: Fleet, tmp_path: Path) -> None:
    plan, answer = tmp_path / "plan.toml", tmp_path / "pilot.json"
    plan.write_text(PRETRAIN_PLAN)
    options = ("--method", "ddp", "--measure-seconds", "1", "--seconds", "3", "--json", str(answer))
    program = fleet.start("pilot", str(plan), *options)
    assert program.status == 0, program.text
    assert "--new-swarm" not in program.text, "what is gone afterwards is not told of"
    told = json.loads(answer.read_text())
    figures = [row["figure"] for row in told["rows"]]
    assert figures[1:] == ["tokens per second of all workers", "bytes from east to west", "bytes from west to east"]
    assert all(row["predicted"] > 0 and row["measured"] > 0 for row in told["rows"])
    for row in told["rows"][2:]:
        assert row["ratio"] == pytest.approx(1.0, abs=0.05), "bytes do not depend on how busy this machine is"


def test_ways_of_fine_tuning_without_a_miniature_are_refused(fleet: Fleet, tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(FINETUNE_PLAN)
    for options, sentence in (
        (("--method", "lora"), "a pilot tries no lora through block servers"),
        (("--set", "goal.methods=['mezo']"), "run `farflung finetune --method mezo`"),
        (("--set", "goal.sequence_length=65"), "the model has positions for 64: lower it by 1"),
    ):
        program = fleet.start("pilot", str(plan), *options)
        assert program.status == 2, program.text
        assert sentence in " ".join(program.text.split()) and "Traceback" not in program.text


@pytest.mark.slow
def test_single_bytes_are_tried_by_real_processes_and_compared(fleet: Fleet, tmp_path: Path) -> None:
    plan, answer, kept = tmp_path / "plan.toml", tmp_path / "pilot.json", tmp_path / "kept"
    plan.write_text(FINETUNE_PLAN)
    measure = ("pilot", str(plan), "--measure-seconds", "0.5")
    program = fleet.start(*measure, "--seconds", "0.001")
    assert program.status == 2 and "24 rounds of onebyte" in program.text and "Traceback" not in program.text
    program = fleet.start(*measure, "--seconds", "15", "--folder", str(kept), "--json", str(answer))
    assert program.status == 0, program.text
    told = json.loads(answer.read_text())
    rows = {row["figure"]: row for row in told["rows"]}
    assert told["is_whole"] and told["method"] == "onebyte over all sites"
    assert [name for name in rows if name.startswith("bytes")] == ["bytes from east to west", "bytes from west to east"]
    assert all(row["predicted"] > 0 and row["measured"] > 0 for row in told["rows"])
    seats = sorted(one.name.rstrip("-0123456789") for one in (kept / "seats").iterdir() if one.is_dir())
    home, other = ("west", "east") if "west-sequencer" in seats else ("east", "west")  # with the faster worker
    servers = [f"{home}-{kind}" for kind in ("sequencer", "standby", "witness")]
    assert seats == sorted([*servers, f"{home}-worker", f"{other}-worker"])
    assert (kept / "journal.flj").stat().st_size > 0
    # What is told is as long on a busy machine; how often it is asked for, and the shares of a round, are not.
    assert rows[f"bytes from {home} to {other}"]["ratio"] == pytest.approx(1.0, abs=0.3), told["rows"]
