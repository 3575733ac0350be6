"""Plans for fine-tuning: bytes and seconds against what the protocols must send and compute."""

import math
import tomllib
from collections.abc import Sequence
from typing import Any

import pytest

from farflung.apps.finetune.run_file import FINETUNE
from farflung.apps.plan.finetuning import candidates, moved_tokens, onebyte_tables
from farflung.apps.plan.fleet import machines_of
from farflung.apps.plan.goals import FinetuneGoal
from farflung.apps.plan.onebyte_run import num_rounds_measured
from farflung.apps.plan.outcome import Outcome
from farflung.apps.plan.plan_file import PlanFile, plan_of
from farflung.apps.plan.planning import assumptions, make_plan, verdict
from farflung.apps.plan.serving_run import Placed
from farflung.apps.plan.sizes import Sizes, sizes_of
from farflung.apps.plan.tuning_run import TunedStretch, TuningRun
from farflung.systems.swarm.info import BlockRange

MODEL = {"parameters": 10e6, "layers": 4, "hidden_size": 512, "vocabulary_size": 1000}
TOKENS, BATCH = 64, 8
LATENCY_SECONDS = 0.05


def plan_for(*, bandwidth_mbit: float = 100.0, goal: dict[str, Any] | None = None, **machine: Any) -> PlanFile:
    kind = {"device": "L4", "count": 2, "flops": 1e12, **machine}
    usual = {"kind": "finetune", "updates": 40, "sequence_length": TOKENS, "batch_size": BATCH}
    return plan_of(
        {
            "goal": {**usual, **(goal or {})},
            "model": MODEL,
            "sites": [{"name": "east"}, {"name": "west"}],
            "machines": [{"site": "east", "price_per_hour": 2.0, **kind}, {"site": "west", **kind}],
            "default_link": {"bandwidth_mbit": bandwidth_mbit, "round_trip_ms": 2000 * LATENCY_SECONDS},
        }
    )


@pytest.fixture(scope="module")
def sizes() -> Sizes:
    return sizes_of(MODEL)


def goal_of(plan: PlanFile) -> FinetuneGoal:
    assert isinstance(plan.goal, FinetuneGoal)
    return plan.goal


def tried(plan: PlanFile, sizes: Sizes, method: str) -> Outcome:
    found = candidates(plan, goal_of(plan), sizes)
    return next(one for one in found if one.method.values["method"] == method).try_on(plan)


def names(outcomes: Sequence[Outcome]) -> list[str]:
    return [str(one.method.values["method"]) for one in outcomes]


def test_single_bytes_take_their_measurements_and_a_way_there_and_back(sizes: Sizes) -> None:
    plan = plan_for(goal={"methods": ["onebyte"], "num_slots": 512})
    run = FINETUNE.read(onebyte_tables(plan, goal_of(plan), sizes, machines_of(plan)), is_simulated=True)
    found = tried(plan, sizes, "onebyte")
    # 40 updates of 100 forward passes are 2000 pairs, so 4 rounds of 512; each machine measures 128 of them.
    assert run.training.rounds == 4
    slot_seconds = 2 * 2 * sizes.parameters * TOKENS * BATCH / 1e12
    assert run.simulation.slot_seconds == pytest.approx(slot_seconds, rel=0.01)
    # 256 examples, as 16 measurements have, are scored every ten rounds; weights are moved in every round.
    moving = moved_tokens(512) * 2 * sizes.parameters / 1e12
    assert found.seconds == pytest.approx(4 * (129.6 * slot_seconds + moving + 2 * LATENCY_SECONDS), rel=0.05)
    # The sequencer is in the east: entries of seven bits come from the west, and all of them go to both machines there.
    own, everybody = 4 * 256, 4 * 512 * 2
    assert 7 / 8 * own < found.sent["west", "east"] < 1.25 * own
    assert 7 / 8 * everybody < found.sent["east", "west"] < 1.25 * everybody
    assert found.limit.key == "limit busy"


def test_every_machine_moves_its_weights_and_the_first_scores_them(sizes: Sizes) -> None:
    goal = {"methods": ["onebyte"], "num_slots": 128, "batch_size": 1, "sequence_length": 8, "examples": 5}
    plan = plan_for(goal=goal, flops=1e9)
    found = tried(plan, sizes, "onebyte")
    num_rounds = math.ceil(goal_of(plan).num_measurements / 128)
    token_seconds = 2 * sizes.parameters / 1e9
    measuring = 32 * 2 * 8 * token_seconds
    moving = moved_tokens(128) * token_seconds
    assert found.seconds / num_rounds == pytest.approx(measuring + moving + 2 * LATENCY_SECONDS, rel=0.05)
    # 256 examples, which the run file scores every ten rounds, are as many sequences as 128 measurements have.
    many = tried(plan_for(goal={**goal, "examples": 10_000}, flops=1e9), sizes, "onebyte")
    scoring = 256 * 8 * token_seconds / 10
    assert many.seconds - found.seconds == pytest.approx(num_rounds * scoring, rel=0.3)


def test_a_stretch_is_longer_where_rounds_are_small_and_never_much_longer_than_the_run() -> None:
    assert num_rounds_measured(10_000, 32) == 256 and num_rounds_measured(10_000, 128) == 64
    assert num_rounds_measured(10_000, 1600) == num_rounds_measured(5, 32) == 32
    assert num_rounds_measured(75, 32) == 64, "four signatures"


def test_more_machines_measure_more_and_a_thin_link_costs_time(sizes: Sizes) -> None:
    goal = {"methods": ["onebyte"], "num_slots": 128}
    few, many = (tried(plan_for(goal=goal, count=count), sizes, "onebyte") for count in (1, 4))
    assert many.seconds < few.seconds / 3
    thin = tried(plan_for(goal=goal, count=1, flops=1e13, bandwidth_mbit=0.001), sizes, "onebyte")
    wide = tried(plan_for(goal=goal, count=1, flops=1e13), sizes, "onebyte")
    # Whoever is behind the thin link is given less to measure, so that it is not as bad as it could be.
    assert thin.seconds > 1.2 * wide.seconds and thin.limit.key in ("limit link", "limit wait")


def chain(plan: PlanFile, sizes: Sizes) -> TunedStretch:
    """A client in the east, two blocks beside it and two in the west."""
    east, _, west, _ = machines_of(plan)
    servers = [Placed(east, BlockRange(0, 2)), Placed(west, BlockRange(2, 4))]
    return TuningRun(plan, goal_of(plan), sizes, servers).run()


def test_lora_sends_hidden_states_gradients_and_factors(sizes: Sizes) -> None:
    goal = {"rank": 4, "micro_batch_tokens": 128}
    plan = plan_for(goal=goal)
    found = chain(plan, sizes)
    assert found.home.site == "east"
    hidden = 4 * TOKENS * BATCH * 512
    factors = 4 * sizes.adapter_parameters(4) / 2
    # There: the input twice, the gradient, and the adapter's newest version; back: output, gradient, and those of the
    # factors with each of four pieces.
    assert found.bytes_per_step["east", "west"] == pytest.approx(3 * hidden + factors, rel=0.02)
    assert found.bytes_per_step["west", "east"] == pytest.approx(2 * hidden + 4 * factors, rel=0.02)
    thin = chain(plan_for(goal=goal, bandwidth_mbit=10.0), sizes)
    assert thin.steps_per_second < found.steps_per_second / 2
    assert sum(thin.bytes_per_step.values()) == pytest.approx(sum(found.bytes_per_step.values()), rel=0.01)


def test_lora_s_computing_is_forth_and_back_through_blocks_and_head(sizes: Sizes) -> None:
    plan = plan_for(bandwidth_mbit=1e6, flops=1e9, blocks_per_second=1e9)
    found = chain(plan, sizes)
    tokens = TOKENS * BATCH
    # Micro-batches pass through both servers side by side, but for the first; the head waits for all of them.
    head = 4 * sizes.head_parameters * tokens / 1e9
    blocks = 2 * 2 * 2 * sizes.block_parameters * tokens / 1e9
    assert head + blocks < 1 / found.steps_per_second < head + 2 * blocks + 1
    assert found.busy_share == pytest.approx(blocks * found.steps_per_second, rel=0.05)


def test_one_machine_alone_takes_its_passes(sizes: Sizes) -> None:
    plan = plan_for(train_tokens_per_second=1000.0)
    per_batch = 2 * sizes.parameters * TOKENS * BATCH / 1e12
    assert tried(plan, sizes, "mezo").seconds == pytest.approx(2000 * 2 * per_batch, rel=0.01)
    assert tried(plan, sizes, "adam").seconds == pytest.approx(40 * TOKENS * BATCH / 1000)
    # Four rounds of ten steps of four clients, back and forth.
    assert tried(plan, sizes, "fedavg-lora").seconds == pytest.approx(160 * 2 * per_batch, rel=0.01)
    assert all(tried(plan, sizes, name).bytes_between_sites == 0 for name in ("mezo", "adam", "fedavg-lora"))


def test_all_ways_are_ranked_and_each_says_how_to_begin(sizes: Sizes) -> None:
    plan = plan_for()
    planned = make_plan(plan, sizes)
    assert {*names(planned.outcomes)} == {"onebyte", "lora", "mezo", "fedavg-lora", "adam"}
    assert [one.seconds for one in planned.outcomes] == sorted(one.seconds for one in planned.outcomes)
    for one in planned.outcomes:
        run = FINETUNE.read(tomllib.loads("\n".join(one.start)))
        assert run.training.batch_size == BATCH and run.model.path == "MODEL"
    said = {sentence.key for sentence in assumptions(plan, sizes)}
    assert {"updates", "forwards", "quality"} <= said
    assert "40 updates" in next(one for one in assumptions(plan, sizes) if one.key == "updates")()


def test_lora_begins_with_its_servers(sizes: Sizes) -> None:
    found = tried(plan_for(goal={"methods": ["lora"]}), sizes, "lora")
    lines = [line for line in found.start if "farflung serve" in line]
    assert len(lines) == 4 and "--new-swarm" in lines[0] and "--join TICKET" in lines[1]


def test_epochs_say_how_many_updates_unless_the_user_does() -> None:
    goal = {"examples": 1000, "epochs": 2.0}
    assert FinetuneGoal(batch_size=16, **goal).num_updates == 125
    assert FinetuneGoal(updates=7, **goal).num_updates == 7


def test_what_cannot_be_says_why_and_by_how_much(sizes: Sizes) -> None:
    planned = make_plan(plan_for(memory_gb=0.04), sizes)
    left_out = {str(method.values["method"]): why for method, why in planned.left_out}
    assert {*left_out} == {"onebyte", "adam"}
    assert "need 80 MB, the largest machine has 32 MB (80% of 40 MB): 48 MB short" in left_out["onebyte"]
    with pytest.raises(ValueError, match=r"cannot be reached.*MB short"):
        make_plan(plan_for(memory_gb=0.001), sizes)
    with pytest.raises(ValueError, match="did you mean 'onebyte'"):
        make_plan(plan_for(goal={"methods": ["onebit"]}), sizes)
    late = make_plan(plan_for(goal={"methods": ["mezo"], "days_max": 1e-6}), sizes)
    assert not late.outcomes[0].meets and "times as long" in verdict(late)()


def test_a_piece_that_takes_longer_than_servers_are_given_is_refused(sizes: Sizes) -> None:
    plan = plan_for(goal={"micro_batch_tokens": 512}, bandwidth_mbit=0.02)
    with pytest.raises(ValueError, match=r"not come through within the 300 s .* lower goal.micro_batch_tokens \(512\)"):
        chain(plan, sizes)
