"""A pilot of alignment by real processes: what was predicted stands beside what was measured."""

import json
from pathlib import Path

import pytest

from tests.loopback.fleet import Fleet
from tests.loopback.plans import ALIGN_PLAN

pytestmark = pytest.mark.loopback


@pytest.fixture
def plan(tmp_path: Path) -> str:
    path = tmp_path / "plan.toml"
    path.write_text(ALIGN_PLAN)
    return str(path)


def test_what_cannot_be_tried_of_alignment_is_refused(fleet: Fleet, plan: str) -> None:
    for options, sentence in (
        (("--method", "asinc"), "unknown method 'asinc' in [--method]: did you mean 'async'?"),
        (("--set", "goal.answer_tokens=4000"), "the model has positions for 2048: lower it by"),
    ):
        program = fleet.start("pilot", plan, *options)
        assert program.status == 2, program.text
        assert sentence in " ".join(program.text.split()) and "Traceback" not in program.text


@pytest.mark.slow
def test_alignment_is_tried_by_real_processes_over_shaped_links(fleet: Fleet, plan: str, tmp_path: Path) -> None:
    answer, kept = tmp_path / "pilot.json", tmp_path / "kept"
    options = ("--method", "sequential", "--measure-seconds", "2", "--json", str(answer))
    program = fleet.start("pilot", plan, *options, "--seconds", "0.1")
    assert program.status == 2 and "updates of sequential" in program.text and "Traceback" not in program.text
    program = fleet.start("pilot", plan, *options, "--seconds", "20", "--folder", str(kept))
    assert program.status == 0, program.text
    told = json.loads(answer.read_text())
    time, rate, there, back = told["rows"]
    assert told["is_whole"] and (time["unit"], rate["unit"]) == ("s", "tokens/s")
    assert (there["figure"], back["figure"]) == ("bytes from east to west", "bytes from west to east")
    assert time["measured"] > 0 and rate["measured"] > 0
    # Bytes do not depend on how busy this machine is, beyond questions that are asked again.
    assert there["ratio"] == pytest.approx(1.0, abs=0.05) and back["ratio"] == pytest.approx(1.0, abs=0.1), told["rows"]
    assert (kept / "run.toml").is_file()
