"""In which order a plan's rows stand."""

from typing import Any

from farflung.apps.plan.outcome import Outcome, ranked
from farflung.apps.plan.words import said


def outcome(name: str, **fields: Any) -> Outcome:
    known = {"seconds": 10.0, "tokens_per_second": 1.0, "meets": True, "cost": 5.0, "energy_kwh": None}
    words = {"limit": said("limit"), "confidence": said("measured"), "method": said("method all", method=name)}
    return Outcome(machines=(), sent={}, start=(), **{**words, **known, **fields})


def names(outcomes: list[Outcome]) -> list[str]:
    return [str(one.method.values["method"]) for one in outcomes]


def test_to_serve_what_meets_the_goal_comes_first_by_cost_and_the_rest_by_speed() -> None:
    rows = [
        outcome("slow", meets=False, cost=1.0, tokens_per_second=0.2),
        outcome("nearly", meets=False, cost=3.0, tokens_per_second=0.9),
        outcome("dear", cost=9.0, tokens_per_second=7.0),
        outcome("cheap", cost=2.0),
    ]
    assert names(ranked(rows, "serve")) == ["cheap", "dear", "nearly", "slow"]


def test_to_pretrain_what_meets_the_goal_comes_first_and_what_is_done_sooner() -> None:
    rows = [
        outcome("late", meets=False, seconds=30.0),
        outcome("later", seconds=20.0, cost=1.0),
        outcome("soon", seconds=10.0, cost=9.0),
        outcome("soon and cheap", seconds=10.0, cost=8.0),
    ]
    assert names(ranked(rows, "pretrain")) == ["soon and cheap", "soon", "later", "late"]
