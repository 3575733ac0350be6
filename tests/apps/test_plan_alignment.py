"""Plans for alignment: bytes and seconds against what the weight plane sends and what sampling and steps take."""

import tomllib
from typing import Any

import pytest
import torch

from farflung.apps.align.run_file import ALIGN
from farflung.apps.plan.align_stand_in import Training
from farflung.apps.plan.aligning import (
    candidates,
    parts_of,
    places_of,
    step_seconds,
    synced_of,
    token_seconds,
)
from farflung.apps.plan.fleet import machines_of
from farflung.apps.plan.goals import AlignGoal
from farflung.apps.plan.outcome import Outcome
from farflung.apps.plan.plan_file import PlanFile, plan_of
from farflung.apps.plan.planning import assumptions, make_plan, verdict
from farflung.apps.plan.sizes import Sizes, sizes_of
from farflung.systems.alignment.config import WeightsConfig
from farflung.systems.alignment.deltas import NOTHING, pack_version, version_of

MODEL = {"parameters": 3e6, "layers": 2, "hidden_size": 256, "vocabulary_size": 1000}
PROMPTS, ANSWERS, PROMPT_TOKENS, ANSWER_TOKENS = 4, 4, 16, 32


def plan_for(
    *, bandwidth_mbit: float = 1000.0, goal: dict[str, Any] | None = None, workers: int = 1, **machine: Any
) -> PlanFile:
    """A trainer in the east, and workers in the west, of which one takes as long for answers as it for a step."""
    kind = {"device": "L4", "flops": 1e11, "blocks_per_second": 10.0, **machine}
    size = {"prompts_per_update": PROMPTS, "answers_per_prompt": ANSWERS}
    length = {"prompt_tokens": PROMPT_TOKENS, "answer_tokens": ANSWER_TOKENS}
    trainer = {**kind, "train_tokens_per_second": PROMPTS * ANSWERS * (PROMPT_TOKENS + ANSWER_TOKENS) / 5.0}
    return plan_of(
        {
            "goal": {"kind": "align", "updates": 50, **size, **length, **(goal or {})},
            "model": MODEL,
            "sites": [{"name": "east"}, {"name": "west"}],
            "machines": [
                {"site": "east", "price_per_hour": 3.0, **trainer},
                {"site": "west", **kind, "train_tokens_per_second": 1.0, "count": workers},
            ],
            "default_link": {"bandwidth_mbit": bandwidth_mbit, "round_trip_ms": 20},
        }
    )


@pytest.fixture(scope="module")
def sizes() -> Sizes:
    return sizes_of(MODEL)


@pytest.fixture
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """An eighth of the weights that a plan looks at, for tests that compare no bytes of versions, of which a small
    sample has 4 % more: each of nine versions is encoded, hashed and put together."""
    monkeypatch.setattr("farflung.apps.plan.align_run.VALUES_MAX", 1 << 17)


def goal_of(plan: PlanFile) -> AlignGoal:
    assert isinstance(plan.goal, AlignGoal)
    return plan.goal


def tried(plan: PlanFile, sizes: Sizes, method: str) -> Outcome:
    found = candidates(plan, goal_of(plan), sizes)
    return next(one for one in found if one.method.values["method"] == method).try_on(plan)


def parts_seconds(plan: PlanFile, sizes: Sizes) -> tuple[float, float]:
    """Of a step, and of sampling its answers by all workers."""
    trainer, workers = parts_of(plan, goal_of(plan), sizes)
    places = places_of(goal_of(plan), sizes, workers)
    rows = -(-PROMPTS * ANSWERS // len(workers))
    fastest = min(token_seconds(goal_of(plan), sizes, one, rows) for one in workers)
    sampling = PROMPTS * ANSWERS * ANSWER_TOKENS * fastest / sum(place.speed for place in places)
    return step_seconds(goal_of(plan), sizes, trainer), sampling


def version_bytes(sizes: Sizes, share: float) -> tuple[int, int]:
    """Of the first copy of weights as large as the model's, and of what a step changes of them."""
    learner = Training(sizes.shapes, share, torch.bfloat16)
    first = version_of(0, learner.snapshot())
    learner.step([])
    second = version_of(1, learner.snapshot())
    config = WeightsConfig()
    return (
        pack_version(first, NOTHING, config, None).manifest.num_bytes,
        pack_version(second, first, config, None).manifest.num_bytes,
    )


def test_parts_follow_from_the_machines(sizes: Sizes) -> None:
    plan = plan_for()
    step, sampling = parts_seconds(plan, sizes)
    assert step == pytest.approx(5.0)
    # Two blocks at ten a second for each token of all sixteen answers together, and their prompts beside that.
    assert sampling == pytest.approx(ANSWER_TOKENS * 2 / 10, rel=0.1)
    # Of more than 64 answers only so many are decoded together.
    many, some = (
        token_seconds(goal_of(plan_for(goal={"prompts_per_update": 64})), sizes, machines_of(plan)[1], rows)
        for rows in (256, 64)
    )
    assert many == some


def test_sequential_samples_trains_and_sends_what_a_step_changes(sizes: Sizes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # a small sample's bytes are 4 % more than the model's
    plan = plan_for(goal={"changed_share": 0.05})
    found = tried(plan, sizes, "sequential")
    step, sampling = parts_seconds(plan, sizes)
    assert found.seconds == pytest.approx(50 * (step + sampling), rel=0.05)
    whole, delta = version_bytes(sizes, 0.05)
    tasks = 50 * PROMPTS * (3 * PROMPT_TOKENS + 100)
    assert found.sent["east", "west"] == pytest.approx(whole + 50 * delta + tasks, rel=0.02)
    # Each token of an answer is itself, its log-probability and a version.
    answers = 50 * PROMPTS * ANSWERS * (ANSWER_TOKENS * (3 + 9 + 1) + 3 * PROMPT_TOKENS + 32)
    assert answers < found.sent["west", "east"] < 1.5 * answers


def test_a_step_changes_as_many_bytes_as_was_measured(sizes: Sizes) -> None:
    """5.4 % of the values made 30.6 times fewer bytes than bfloat16 (bench/weight_sync)."""
    _, delta = version_bytes(sizes, 0.054)
    assert 2 * sizes.parameters / delta == pytest.approx(30.6, rel=0.15)


def test_the_first_updates_of_a_short_run_take_what_those_of_a_long_one_do(sizes: Sizes) -> None:
    found = {count: tried(plan_for(goal={"updates": count}), sizes, "sequential") for count in (1, 2, 50)}
    one, two, many = (found[count].seconds for count in (1, 2, 50))
    assert two - one == pytest.approx((many - one) / 49)
    # Workers fetch what came out of the last update as well.
    whole, delta = version_bytes(sizes, 0.05)
    assert found[1].sent["east", "west"] == pytest.approx(whole + delta, rel=0.02)
    assert delta > 0.04 * whole


@pytest.mark.usefixtures("small_sample")
def test_making_a_version_and_putting_it_together_take_time(sizes: Sizes) -> None:
    usual = tried(plan_for(), sizes, "sequential")
    whole = synced_of(goal_of(plan_for()), sizes).num_bytes
    slow = plan_for(packed_bytes_per_second=whole / 2.0, installed_bytes_per_second=whole / 3.0)
    assert tried(slow, sizes, "sequential").seconds == pytest.approx(usual.seconds + 50 * (2.0 + 3.0), rel=0.02)


@pytest.mark.usefixtures("small_sample")
def test_short_answers_take_no_longer_than_they_are(sizes: Sizes) -> None:
    """Workers decode eight tokens at a time."""
    whole, short = (
        tried(plan_for(goal={"answer_tokens": count}, train_tokens_per_second=1e9), sizes, "sequential").seconds
        for count in (8, 5)
    )
    step = parts_seconds(plan_for(), sizes)[0] / (PROMPT_TOKENS + ANSWER_TOKENS)
    trained = 50 * step * (8 - 5)
    assert whole - short == pytest.approx(50 * 3 * 2 / 10 + trained, rel=0.1)


@pytest.mark.usefixtures("small_sample")
def test_tokens_of_a_small_vocabulary_take_fewer_bytes(sizes: Sizes) -> None:
    """As messages have them: below 128 one byte, and above 255 three."""
    small = sizes_of({**MODEL, "vocabulary_size": 100})
    large, few = (tried(plan_for(), each, "sequential").sent["west", "east"] for each in (sizes, small))
    num_tokens = 50 * PROMPTS * ANSWERS * (PROMPT_TOKENS + ANSWER_TOKENS)
    per_token = (128 + 2 * 128 + 3 * (1000 - 256)) / 1000
    assert large - few == pytest.approx(num_tokens * (per_token - 1), rel=0.02)


@pytest.mark.usefixtures("small_sample")
def test_asynchronous_overlaps_sampling_and_training(sizes: Sizes) -> None:
    plan = plan_for()
    step, sampling = parts_seconds(plan, sizes)
    found = tried(plan, sizes, "async")
    assert 50 * max(step, sampling) * 0.98 < found.seconds < 50 * (step + sampling) * 0.8
    assert found.limit.key in ("limit sampling", "limit trainer")


@pytest.mark.usefixtures("small_sample")
def test_more_workers_help_while_sampling_takes_the_time(sizes: Sizes) -> None:
    busy: dict[str, Any] = {"flops": 1e8, "blocks_per_second": 1e6}
    few, many = (tried(plan_for(workers=count, **busy), sizes, "async") for count in (1, 4))
    assert few.limit.key == "limit sampling"
    assert many.tokens_per_second > 2 * few.tokens_per_second
    # Where reading the weights takes the time, four machines read them four times.
    few, many = (tried(plan_for(workers=count, blocks_per_second=2.0), sizes, "sequential") for count in (1, 4))
    assert many.tokens_per_second < 1.2 * few.tokens_per_second


@pytest.mark.usefixtures("small_sample")
def test_a_thin_link_costs_time_and_an_adapter_saves_it(sizes: Sizes) -> None:
    wide, thin = (tried(plan_for(bandwidth_mbit=mbit), sizes, "sequential") for mbit in (1000.0, 0.4))
    assert thin.seconds > 1.2 * wide.seconds
    small = plan_for(bandwidth_mbit=0.4, goal={"adapter_rank": 2})
    adapter = tried(small, sizes, "sequential")
    assert adapter.seconds < thin.seconds
    assert adapter.bytes_between_sites < thin.bytes_between_sites / 3
    assert synced_of(goal_of(small), sizes).num_values == sizes.adapter_parameters(2)
    assert "rank 2" in assumptions(small, sizes)[-1]()


@pytest.mark.usefixtures("small_sample")
def test_weights_that_do_not_come_in_time_are_refused(sizes: Sizes) -> None:
    with pytest.raises(ValueError, match="no batch has come for"):
        tried(plan_for(bandwidth_mbit=0.02), sizes, "async")


@pytest.mark.usefixtures("small_sample")
def test_all_ways_are_ranked_and_each_has_its_run_file(sizes: Sizes) -> None:
    planned = make_plan(plan_for(), sizes)
    modes = {one.method.values["method"]: one for one in planned.outcomes}
    assert {*modes} == {"sequential", "async", "colocated"}
    # The east has one machine, which is the trainer.
    ((method, why),) = planned.left_out
    assert method.key == "method one" and "1 machine short" in why
    assert modes["colocated"].bytes_between_sites == 0 and len(modes["colocated"].machines) == 1
    for mode, one in modes.items():
        run = ALIGN.read(tomllib.loads("\n".join(one.start)))
        assert run.sync.mode == mode and run.training.steps == 50
        assert run.regions[0].name == "east"
    assert "done in" in verdict(planned)()


@pytest.mark.usefixtures("small_sample")
def test_what_cannot_be_says_why_and_by_how_much(sizes: Sizes) -> None:
    with pytest.raises(ValueError, match=r"trainer's weights, gradients and moments need .* MB short"):
        make_plan(plan_for(memory_gb=0.02), sizes)
    adapter = plan_for(memory_gb=0.02, goal={"adapter_rank": 1})
    assert len(make_plan(adapter, sizes).outcomes) == 3, "an adapter's moments are small"
    with pytest.raises(ValueError, match="did you mean 'async'"):
        make_plan(plan_for(goal={"methods": ["asinc"]}), sizes)
    with pytest.raises(ValueError, match="changed_share is a share"):
        plan_for(goal={"changed_share": 1.5})
