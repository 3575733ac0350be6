"""A pilot of fine-tuning, without a run: how long it is, what it learns from, and what of its log is compared."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from farflung.apps.finetune.labelled import read_task
from farflung.apps.finetune.run_file import FINETUNE
from farflung.apps.finetune.worker import RECEIVED, SENT, own_bytes
from farflung.apps.pilot.finetuning import METHOD, check_method, compared, of_rounds, sized_rounds
from farflung.apps.pilot.local_run import Small
from farflung.apps.pilot.steady import ROUNDS_TO_SETTLE, steady
from farflung.apps.pilot.stock import stocked, write_stock
from farflung.apps.plan.finetuning import onebyte_machines, onebyte_tables, try_onebyte
from farflung.apps.plan.goals import FinetuneGoal
from farflung.apps.plan.plan_file import plan_of
from farflung.apps.plan.sizes import sizes_of
from farflung.apps.runs.history import History, Point
from farflung.world.address import PeerId
from farflung.world.doors import TrafficMeter

MODEL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
GOAL = FinetuneGoal(sequence_length=12, batch_size=2, num_slots=8)
PLAN: dict[str, Any] = {
    "goal": {"kind": "finetune", "sequence_length": 12, "batch_size": 2, "num_slots": 8},
    "model": {**MODEL, "vocab_size": 300},
    "sites": [{"name": "east"}, {"name": "west"}],
    "machines": [{"site": site, "device": "cpu", "forward_tokens_per_second": 960.0} for site in ("east", "west")],
}


def point(seat: str, seconds: float, round_number: int, *, has_measured: bool = True) -> Point:
    """West sends 25 bytes a round and hears 88; one report in four rounds has a signature of 100 besides."""
    sent = 25.0 * round_number + 100.0 * (round_number // 16) + 500.0
    values = {"round": float(round_number), SENT: sent, RECEIVED: 88.0 * round_number}
    num_steps = 4 * round_number + int(has_measured)
    return Point(seconds=seconds, seat=seat, region=seat, num_steps=num_steps, num_tokens=0, loss=None, values=values)


def history_of(num_rounds: int, round_seconds: float = 0.5) -> History:
    """East is alone for six rounds of 5 s each; both go on at an even pace then, and the last report comes late."""
    history = History()
    for number in range(6):
        history.append(point("east", 5.0 * number, number))
    history.append(point("west", 30.0, 6, has_measured=False))
    for number in range(6, num_rounds + 1):
        for seat in ("east", "west"):
            history.append(point(seat, 30.0 + round_seconds * (number - 5), number))
    for seat in ("east", "west"):
        history.append(point(seat, 100.0 + round_seconds * num_rounds, num_rounds))
    return history


def test_rounds_before_all_measure_and_the_end_do_not_count() -> None:
    found = steady(history_of(60), 2, "east")
    assert found is not None
    assert found.num_rounds == 48  # of the 51 between both, as many as have whole signatures
    assert found.rounds_per_second == pytest.approx(2.0)
    assert found.bytes_per_round["west", "east"] == pytest.approx(25 + 100 / 16)
    assert found.bytes_per_round["east", "west"] == pytest.approx(88)


def test_few_rounds_are_compared_and_too_few_are_not() -> None:
    assert steady(history_of(12), 2, "east") is not None
    assert steady(history_of(6 + ROUNDS_TO_SETTLE), 2, "east") is None
    assert steady(history_of(60), 3, "east") is None, "one worker has told nothing"
    silent = History()
    for number in range(9):
        silent.append(point("east", number, number))
        silent.append(replace(point("west", number, number), num_steps=0))
    assert steady(silent, 2, "east") is None, "one worker has measured nothing"
    assert steady(History(), 2, "east") is None


def test_a_run_is_compared_by_its_steady_rounds() -> None:
    sizes, plan = sizes_of(PLAN["model"]), plan_of(PLAN)
    goal = of_rounds(GOAL, 60, 8)
    outcome = try_onebyte(goal, sizes, METHOD, plan)
    small = Small({}, METHOD, outcome, 60)
    time, *ways = compared(small, history_of(60), (), is_whole=True).rows
    assert time.what() == "seconds for 48 rounds"
    assert time.measured == pytest.approx(24.0) and time.predicted == pytest.approx(0.8 * outcome.seconds)
    assert [way.what() for way in ways] == ["bytes from east to west", "bytes from west to east"]
    assert ways[0].measured == pytest.approx(48 * 88)
    assert ways[0].predicted == pytest.approx(0.8 * outcome.sent["east", "west"])
    assert not compared(small, History(), (), is_whole=False).rows


def test_a_run_has_as_many_rounds_as_the_time_and_the_plan_as_many_as_the_run() -> None:
    assert sized_rounds(2.0, 30.0) == 60
    with pytest.raises(
        ValueError, match=r"24 rounds of onebyte, .* take 48 s here, and --seconds is 10: give --seconds"
    ):
        sized_rounds(0.5, 10.0)
    plan, sizes = plan_of(PLAN), sizes_of(PLAN["model"])
    tables = onebyte_tables(plan, of_rounds(GOAL, 60, 8), sizes, onebyte_machines(plan, sizes))
    assert tables["training"]["rounds"] == 60 and tables["method"]["num_slots"] == 8


def test_what_is_learned_is_as_long_as_the_plan_says(tmp_path: Path) -> None:
    plan, sizes = plan_of(PLAN), sizes_of(PLAN["model"])
    run = FINETUNE.read(
        stocked(onebyte_tables(plan, GOAL, sizes, onebyte_machines(plan, sizes)), write_stock(GOAL, sizes, tmp_path))
    )
    assert run.data is not None and run.objective is not None
    tokenizer = AutoTokenizer.from_pretrained(run.model.path)
    rows = read_task(run.data, run.objective, tokenizer, None).train
    assert {len(row) for row in rows.tokens} == {GOAL.sequence_length} and not any(rows.num_given)
    assert len(rows) >= GOAL.batch_size and not run.model.is_written
    small = sizes_of({**MODEL, "vocab_size": 64})
    with pytest.raises(ValueError, match=r"257 tokens of bytes, and its vocabulary has 64: raise model.vocab_size"):
        write_stock(GOAL, small, tmp_path)


def test_methods_without_a_miniature_are_refused() -> None:
    check_method(None)
    check_method("onebyte")
    for method, sentence in (
        ("lora", "block servers"),
        ("adam", "`farflung finetune --method adam`"),
        ("onebite", "did you mean 'onebyte'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            check_method(method)


def test_what_nodes_send_to_keep_in_touch_is_not_the_methods_own() -> None:
    traffic, peer = TrafficMeter(), PeerId("a" * 52)
    for kind, num_bytes in (("Ping", 22), ("ByteEntries", 25), ("ByteSignature", 129)):
        traffic.count(peer, kind, sent=True, num_bytes=num_bytes)
    traffic.count(peer, "ByteNews", sent=False, num_bytes=88)
    assert own_bytes(traffic) == {SENT: 154.0, RECEIVED: 88.0}
