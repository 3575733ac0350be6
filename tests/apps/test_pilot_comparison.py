"""What a pilot says: predictions beside measurements, of serving and of pretraining, stopped early or not."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from farflung.apps.pilot.comparison import Comparison, Row, verdict
from farflung.apps.pilot.local_run import RunFolder, Small, rate_of, run_folder
from farflung.apps.pilot.pretraining import compared, sized_steps
from farflung.apps.pilot.report import as_json, page_of
from farflung.apps.pilot.serving import KINDS, Asked, Crossed, Drawn, crossed
from farflung.apps.pilot.serving import compared as compared_serving
from farflung.apps.pilot.standing import HERE
from farflung.apps.plan.goals import PretrainGoal, ServeGoal
from farflung.apps.plan.plan_file import plan_of
from farflung.apps.plan.pretraining import try_method
from farflung.apps.plan.serving_run import Served
from farflung.apps.plan.sizes import sizes_of
from farflung.apps.plan.words import LANGUAGES, said
from farflung.apps.runs.history import History, Point
from farflung.apps.runs.known import RUN_FILE
from farflung.world.address import PeerId
from farflung.world.doors import TrafficMeter

MODEL: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
GOAL = PretrainGoal(tokens=32_000, sequence_length=8, batch_size=2)
PLAN = plan_of(
    {
        "goal": {"kind": "pretrain", "tokens": GOAL.tokens, "sequence_length": 8, "batch_size": 2},
        "model": {**MODEL, "vocab_size": 64},
        "sites": [{"name": "east"}, {"name": "west"}],
        "machines": [{"site": site, "device": "cpu", "train_tokens_per_second": 160.0} for site in ("east", "west")],
    }
)
SERVED = Served(
    first_token_seconds=2.0,
    first_prompt_bytes={(HERE, "east"): 1000.0, ("east", HERE): 100.0, ("east", "west"): 1e6},
    tokens_per_second=[4.0, 5.0],
    prompt_bytes={},
    token_bytes={(HERE, "east"): 20.0, ("west", HERE): 30.0, (HERE, HERE): 7.0, ("east", "west"): 1e6},
    busy_share={},
    chains=[],
)


def point(seat: str, seconds: float, num_steps: int) -> Point:
    return Point(seconds=seconds, seat=seat, region=seat, num_steps=num_steps, num_tokens=16 * num_steps, loss=1.0)


def values(comparison: Comparison) -> Mapping[str, tuple[float, float]]:
    return {row.what(): (row.predicted, row.measured) for row in comparison.rows}


def test_serving_is_compared_by_what_crosses_between_here_and_the_servers() -> None:
    drawn = [Drawn(4, (8.0, 4.0), Crossed(80.0, 120.0)), Drawn(4, (8.0, 3.0), Crossed(80.0, 120.0))]
    asked = Asked(prompts=[(2.0, Crossed(1000.0, 90.0)), (4.0, Crossed(1200.0, 90.0))], drawn=drawn)
    found = compared_serving(SERVED, asked, ServeGoal(users=2), 9.0, (), is_whole=True)
    assert values(found) == {
        "seconds to the first token, one user": (2.0, 3.0),
        "bytes sent for a prompt": (1000.0, 1100.0),
        "tokens per second, slowest user": (4.0, pytest.approx(24 / 7)),
        "bytes sent for a token of each user": (20.0, 20.0),
        "bytes received for a token of each user": (30.0, 30.0),
    }
    assert "first token, one user, 1.5 times" in verdict(found)()


def test_only_messages_that_serve_are_counted() -> None:
    traffic, peer = TrafficMeter(), PeerId("a" * 52)
    for kind in ("Step", "ReachProbe"):
        traffic.count(peer, kind, sent=True, num_bytes=5)
    traffic.count(peer, "Output", sent=False, num_bytes=7)
    assert crossed(traffic) == Crossed(5, 7)
    assert {"Step", "Output", "CloseSession"} <= KINDS


def test_a_run_is_compared_by_its_pace_and_by_the_bytes_of_what_was_done() -> None:
    outcome = try_method(GOAL, sizes_of(PLAN.model), said("method all", method="ddp"), PLAN)
    small = Small({}, said("method all", method="ddp"), outcome, GOAL.tokens // GOAL.tokens_per_step)
    history = History(link_bytes={("east", "west"): 5000})
    for seat in ("east", "west"):
        for seconds, num_steps in ((0.5, 0), (1.0, 10), (7.0, 90), (11.0, 110), (21.0, 500)):
            history.append(point(seat, seconds, num_steps))
    assert rate_of(history) == pytest.approx(2 * 390 / 10), "the first fifth is not what it will be like"
    found = compared(small, history, (), is_whole=False)
    (time, rate, there, back) = found.rows
    assert time.predicted == pytest.approx(outcome.seconds / 2) and time.measured == pytest.approx(1000 / 78)
    assert rate.measured == pytest.approx(78 * 16) and rate.predicted == pytest.approx(outcome.tokens_per_second)
    assert (there.measured, back.measured) == (5000, 0)
    assert there.predicted == pytest.approx(outcome.sent["east", "west"] / 2)
    assert verdict(found)().startswith("Stopped after 21 s")
    assert not compared(small, History(), (), is_whole=False).rows


def test_a_run_has_whole_rounds_and_is_refused_if_not_one_fits(tmp_path: Path) -> None:
    sizes = sizes_of(PLAN.model)
    method = said("method all", method="diloco")
    outcome = try_method(GOAL, sizes, method, PLAN)
    steps_per_second = outcome.tokens_per_second / GOAL.tokens_per_step
    round_steps = 2 * 32
    enough = 2.5 * round_steps / steps_per_second
    assert sized_steps(PLAN, GOAL, sizes, method, tmp_path, outcome, enough) == 2 * round_steps
    with pytest.raises(ValueError, match=r"a round of diloco over all sites takes \d+ s here.* give --seconds \d+"):
        sized_steps(PLAN, GOAL, sizes, method, tmp_path, outcome, enough / 3)


def test_a_folder_with_a_run_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with run_folder(tmp_path / "new") as place:
        assert place == RunFolder(tmp_path / "new", is_kept=True)
    (tmp_path / RUN_FILE).touch()
    with pytest.raises(ValueError, match="already holds a run: choose another --folder"), run_folder(tmp_path):
        pass
    with run_folder(None) as place:
        assert place.path.parent.is_dir() and not place.is_kept
    assert not place.path.parent.exists()


def test_the_report_is_whole_in_two_languages() -> None:
    row = Row(said("row bytes", one="<east", other="west"), "B", 2e6, 1e6)
    found = Comparison(method=said("as it stands"), seconds=60.0, rows=(row,), remarks=(said("pilot bytes"),))
    for language in LANGUAGES:
        page = page_of(found, language)
        assert "&lt;east" in page and "<east" not in page and "1 MB" in page and "0.5" in page
        assert found.remarks[0](language) in page
    assert page_of(found, "en") != page_of(found, "ja")
    (told,) = as_json(found)["rows"]
    assert (told["predicted"], told["measured"], told["ratio"], told["unit"]) == (2e6, 1e6, 0.5, "B")
    nothing = replace(found, rows=(), is_whole=False)
    assert "before anything was measured" in verdict(nothing)()
    assert Row(row.what, "B", 0.0, 1.0).ratio == float("inf") and Row(row.what, "B", 0.0, 0.0).ratio == 1.0
