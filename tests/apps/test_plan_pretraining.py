"""Plans for pretraining: engines on virtual time with a stand-in for the model, and what is said of them."""

import tomllib
from dataclasses import replace
from typing import Any

import pytest
import torch

from farflung.apps.plan.fleet import machines_of
from farflung.apps.plan.goals import PretrainGoal
from farflung.apps.plan.outcome import limit_of
from farflung.apps.plan.plan_file import PlanFile, plan_of
from farflung.apps.plan.planning import make_plan, verdict
from farflung.apps.plan.pretraining import candidates, machines_that_fit, places_of, run_tables
from farflung.apps.plan.sizes import SAVED_PER_WORD, Sizes, sizes_of
from farflung.apps.plan.training_run import rounds_stretch, tree_stretch
from farflung.apps.pretrain import desync, hierarchy
from farflung.apps.pretrain.run_file import PRETRAIN

MODEL = {"parameters": 10e6, "layers": 4, "hidden_size": 128}
STEP_SECONDS = 0.5
TOKENS_PER_STEP = 1024
QWEN = {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 32}


def plan_for(*, bandwidth_mbit: float = 200.0, goal: dict[str, Any] | None = None, **machine: Any) -> PlanFile:
    kind = {"device": "L4", "train_tokens_per_second": TOKENS_PER_STEP / STEP_SECONDS, "count": 2, **machine}
    usual = {"kind": "pretrain", "tokens": 10_240_000, "sequence_length": 128, "batch_size": 8}
    return plan_of(
        {
            "goal": {**usual, **(goal or {})},
            "model": MODEL,
            "sites": [{"name": "east"}, {"name": "west"}],
            "machines": [{"site": "east", "price_per_hour": 2.0, **kind}, {"site": "west", **kind}],
            "default_link": {"bandwidth_mbit": bandwidth_mbit, "round_trip_ms": 10, "price_per_gb": 0.5},
        }
    )


@pytest.fixture(scope="module")
def sizes() -> Sizes:
    return sizes_of(MODEL)


def goal_of(plan: PlanFile) -> PretrainGoal:
    assert isinstance(plan.goal, PretrainGoal)
    return plan.goal


def run_of(plan: PlanFile, sizes: Sizes, algorithm: str) -> Any:
    machines = machines_of(plan)
    return PRETRAIN.read(run_tables(plan, goal_of(plan), sizes, machines, algorithm), is_simulated=True)


def test_rounds_take_the_time_of_their_steps_and_of_their_ring(sizes: Sizes) -> None:
    plan = plan_for()
    places = places_of(machines_of(plan), sizes)
    config = desync.config_of(run_of(plan, sizes, "diloco"))
    stretch = rounds_stretch(plan, config, places, STEP_SECONDS, sizes.parameters)
    # A ring of four moves 2 x 3/4 of the model over each of its ways; one of them leads to the other site.
    sent = 1.5 * 4 * sizes.parameters
    round_seconds = config.parameters_every * STEP_SECONDS + sent / (200e6 / 8)
    assert stretch.round_seconds == pytest.approx(round_seconds, rel=0.05)
    assert stretch.steps_per_second == pytest.approx(4 * config.parameters_every / round_seconds, rel=0.05)
    steps = 4 * config.parameters_every
    assert stretch.bytes_per_step["east", "west"] * steps == pytest.approx(sent, rel=0.01)
    assert stretch.busy_share == pytest.approx(config.parameters_every * STEP_SECONDS / round_seconds, rel=0.05)


def test_the_size_of_the_stand_in_does_not_matter(sizes: Sizes, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_for()
    places = places_of(machines_of(plan), sizes)
    for algorithm in ("desloc", "farflung", "ddp"):
        config = desync.config_of(run_of(plan, sizes, algorithm))
        small = rounds_stretch(plan, config, places, STEP_SECONDS, sizes.parameters)
        monkeypatch.setattr("farflung.apps.plan.training_run.STAND_IN_VALUES", 4 * 65_536)
        large = rounds_stretch(plan, config, places, STEP_SECONDS, sizes.parameters)
        monkeypatch.undo()
        assert small.steps_per_second == pytest.approx(large.steps_per_second, rel=0.03), algorithm
        small_bytes, large_bytes = (sum(one.bytes_per_step.values()) for one in (small, large))
        # Rounds that begin by themselves are as many as latencies and headers leave time for.
        tolerance = 0.08 if config.is_free_running else 0.03
        assert small_bytes == pytest.approx(large_bytes, rel=tolerance), algorithm


def test_a_tree_sends_an_update_up_and_a_model_down(sizes: Sizes) -> None:
    plan = plan_for(bandwidth_mbit=10_000)
    config = hierarchy.config_of(run_of(plan, sizes, "async_local_sgd"))
    places = places_of(machines_of(plan), sizes)
    stretch = tree_stretch(plan, config, places, STEP_SECONDS, sizes.parameters, has_global=False)
    # The server is in the east: each update of the west crosses once, and a model comes back for it.
    per_update = stretch.bytes_per_step["west", "east"] * 2 * config.num_local_steps
    assert per_update == pytest.approx(4 * sizes.parameters, rel=0.1)
    assert stretch.bytes_per_step["east", "west"] == pytest.approx(stretch.bytes_per_step["west", "east"], rel=0.1)


def test_the_best_method_and_its_run_file(sizes: Sizes) -> None:
    plan = plan_for(bandwidth_mbit=20.0, goal={"methods": ["ddp", "farflung"]})
    planned = make_plan(plan, sizes)
    best = planned.outcomes[0]
    assert best.method.values["method"] == "farflung"
    assert best.limit.key == "limit busy"
    # 10,000 steps of half a second on four machines.
    assert best.seconds == pytest.approx(10_000 * STEP_SECONDS / 4, rel=0.05)
    assert best.cost == pytest.approx(best.seconds / 3600 * 4 + best.bytes_between_sites / 1e9 * 0.5)
    assert "farflung over all sites" in verdict(planned)()
    tables = tomllib.loads("\n".join(best.start))
    run = PRETRAIN.read(tables)
    assert run.algorithm.name == "farflung" and run.training.tokens == 10_240_000
    assert [region.are_remote for region in run.regions] == [(False, True), (True, True)], "one machine leads"
    begins = [line for line in best.start if line.startswith("# farflung")]
    assert [line.partition("     ")[2] for line in begins] == [
        "on a machine of east",
        "on each other machine of east",
        "on each machine of west",
    ]


def test_one_machine_more_is_what_helps_busy_ones(sizes: Sizes) -> None:
    best = make_plan(plan_for(goal={"methods": ["farflung"]}), sizes).outcomes[0]
    assert best.change.key == "change machine"
    assert float(best.change.values["gain"]) == pytest.approx(0.25, abs=0.03)


def test_a_thin_link_is_named_and_more_bandwidth_helps(sizes: Sizes) -> None:
    plan = plan_for(bandwidth_mbit=20.0, goal={"methods": ["ddp"]}, count=4)
    by_method = {one.method.key: one for one in make_plan(plan, sizes).outcomes}
    assert by_method["method all"].limit.key == "limit link"
    assert by_method["method one"].bytes_between_sites == 0
    alone = replace(plan, sites=plan.sites[:1], machines=plan.machines[:1])
    assert len(candidates(alone, goal_of(alone), sizes)) == 1


def test_an_exchange_that_takes_long_is_given_the_time(sizes: Sizes) -> None:
    planned = make_plan(plan_for(bandwidth_mbit=0.5, goal={"methods": ["diloco"]}), sizes)
    found = next(one for one in planned.outcomes if one.method.key == "method all")
    run = PRETRAIN.read(tomllib.loads("\n".join(found.start)))
    assert run.algorithm.synchronous.rounds.exchange_seconds_max > 3 * 1.5 * 4 * sizes.parameters / (0.5e6 / 8)


@pytest.mark.parametrize("given", [{}, {"num_key_value_heads": 2}, QWEN])
def test_a_step_keeps_about_what_a_plan_takes_it_to(given: dict[str, Any]) -> None:
    table = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 3, "num_attention_heads": 4, **given}
    found = sizes_of({**table, "vocab_size": 64, "max_position_embeddings": 256})
    model = found.source.causal_class(found.source.config)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.zeros(4, 64, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(input_ids=ids, use_cache=False)
    weights = {one.untyped_storage().data_ptr() for one in model.parameters()}
    measured = sum(size for pointer, size in kept.items() if pointer not in weights)
    planned = 4 * ids.numel() * (found.saved_values_per_token - SAVED_PER_WORD * 64)
    assert output.logits.requires_grad and 0.95 <= planned / measured <= 1.3


def test_what_cannot_be_says_why_and_by_how_much(sizes: Sizes) -> None:
    needed = r"1,024 tokens, need 7\d\d MB, the largest machine has 80 MB .*: 6\d\d MB short; lower goal.batch_size"
    small = plan_for(memory_gb=0.1)
    with pytest.raises(ValueError, match=needed):
        machines_that_fit(small, goal_of(small), sizes)
    late = make_plan(plan_for(goal={"methods": ["ddp"], "days_max": 0.001}), sizes)
    assert not late.outcomes[0].meets and "times as long" in verdict(late)()
    with pytest.raises(ValueError, match="did you mean 'diloco'"):
        make_plan(plan_for(goal={"methods": ["dilocco"]}), sizes)


def test_limits() -> None:
    way = ("east", "west")
    assert limit_of(0.95, way, {way: 0.9}).key == "limit busy"
    assert limit_of(0.3, way, {way: 0.9}).key == "limit link"
    assert limit_of(0.3, way, {way: 0.1}).key == "limit wait"
    assert limit_of(0.3, None, {}).key == "limit wait"
