"""Plans for serving: the shipping servers and sessions on virtual time, and what is said of them."""

from typing import Any

import pytest

from farflung.apps.plan.fleet import machines_of, peer_of
from farflung.apps.plan.goals import ServeGoal
from farflung.apps.plan.plan_file import PlanFile, plan_of
from farflung.apps.plan.planning import make_plan, verdict
from farflung.apps.plan.serving import groups_of, near_sites
from farflung.apps.plan.serving_run import Group, Placed, Served, ServingRun
from farflung.apps.plan.sizes import Sizes, sizes_of
from farflung.apps.plan.table import as_json
from farflung.apps.plan.words import said
from farflung.systems.swarm.info import BlockRange
from farflung.wire.identity import Identity

MODEL = {"parameters": 1.1e9, "layers": 8, "hidden_size": 2048}
BLOCKS_PER_SECOND = 100.0
ONE_WAY_SECONDS = 0.05


def plan_for(*, per_site: int = 1, goal: dict[str, Any] | None = None, **machine: Any) -> PlanFile:
    kind = {"device": "L4", "blocks_per_second": BLOCKS_PER_SECOND, "count": per_site, "price_per_hour": 1.0, **machine}
    usual = {"kind": "serve", "users": 1, "tokens_per_second": 1.0, "prompt_tokens": 16, "answer_tokens": 32}
    return plan_of(
        {
            "goal": {**usual, "users_at": ["east"], "client_ms": 0.0, **(goal or {})},
            "model": MODEL,
            "sites": [{"name": "east"}, {"name": "west"}],
            "machines": [{"site": "east", **kind}, {"site": "west", **kind}],
            "default_link": {"bandwidth_mbit": 1000, "round_trip_ms": 2000 * ONE_WAY_SECONDS, "price_per_gb": 1.0},
        }
    )


def goal_of(plan: PlanFile) -> ServeGoal:
    assert isinstance(plan.goal, ServeGoal)
    return plan.goal


@pytest.fixture(scope="module")
def sizes() -> Sizes:
    return sizes_of(MODEL)


def split_run(plan: PlanFile, sizes: Sizes) -> Served:
    """Half of the blocks in each site."""
    east, west = machines_of(plan)
    servers = (Placed(east, BlockRange(0, 4)), Placed(west, BlockRange(4, 8)))
    return ServingRun(plan, goal_of(plan), sizes, [Group(servers, ("east", "west"))], 8).run()


def test_a_token_takes_the_seconds_of_its_way_and_of_its_blocks(sizes: Sizes) -> None:
    served = split_run(plan_for(), sizes)
    (rate,) = served.tokens_per_second
    floor = 8 / BLOCKS_PER_SECOND + 2 * ONE_WAY_SECONDS
    assert floor < 1 / rate < 1.05 * floor


def test_a_token_sends_its_hidden_states_once_over_each_way(sizes: Sizes) -> None:
    served = split_run(plan_for(), sizes)
    hidden = 4 * sizes.source.hidden_size
    # East to west: pushed on by the first server. West to east: to the user; the first server's own answer stays.
    assert served.token_bytes["east", "west"] == pytest.approx(hidden, rel=0.1)
    assert served.token_bytes["west", "east"] == pytest.approx(hidden, rel=0.1)
    assert sum(served.prompt_bytes.values()) > 15 * sum(served.token_bytes.values())


def test_messages_carry_names_as_long_as_real_ones(sizes: Sizes) -> None:
    peer = Identity.generate().peer
    assert len(peer_of("east-1")) == len(peer) and len(sizes.source.fingerprint) == 64
    (one, other) = {peer_of(machine.name) for machine in machines_of(plan_for())}
    assert one != other


def test_many_users_wait_for_each_other_only_where_a_machine_is_busy(sizes: Sizes) -> None:
    slow = plan_for(goal={"users": 6}, forward_tokens_per_second=BLOCKS_PER_SECOND)
    batching = plan_for(goal={"users": 6}, forward_tokens_per_second=1e6)
    one_by_one, together = split_run(slow, sizes), split_run(batching, sizes)
    assert min(together.tokens_per_second) > 2 * min(one_by_one.tokens_per_second)


def test_the_best_way_is_near_and_the_answer_is_complete(sizes: Sizes) -> None:
    planned = make_plan(plan_for(), sizes)
    best = planned.outcomes[0]
    assert {machine.site for machine in best.machines} == {"east"}
    assert best.bytes_between_sites == 0
    assert best.meets and best.cost == pytest.approx(1.0)
    assert best.tokens_per_second == pytest.approx(BLOCKS_PER_SECOND / 8, rel=0.05)
    assert best.limit.key == "limit compute"
    assert best.confidence.key == "measured"
    assert best.energy_kwh is None
    (command,) = best.start
    assert command.startswith("farflung serve MODEL --new-swarm --blocks 0:8 ") and "--site east" in command
    far = next(one for one in planned.outcomes if one.method == said("some sites", sites="west"))
    assert far.bytes_between_sites > 0 and far.cost > best.cost
    told = as_json(planned)
    assert told["outcomes"][0]["meets_goal"] and "answers" not in told["verdict"]
    assert "met" not in verdict(planned)("ja")


def test_a_link_that_takes_the_time_is_named_and_its_change_helps_most(sizes: Sizes) -> None:
    # Each site holds a half, on two machines with room for two blocks each.
    planned = make_plan(plan_for(per_site=2, memory_gb=0.75), sizes)
    best = planned.outcomes[0]
    assert best.limit.key == "limit way" and best.limit.values["count"] == 2
    assert best.change.key == "change round trip"
    assert 0.2 < float(best.change.values["gain"]) < 0.5


def test_a_goal_that_is_missed_says_by_how_much(sizes: Sizes) -> None:
    planned = make_plan(plan_for(goal={"tokens_per_second": 25.0}), sizes)
    assert not planned.outcomes[0].meets
    assert "50% short" in verdict(planned)()


def test_too_little_memory_says_how_much(sizes: Sizes) -> None:
    with pytest.raises(ValueError, match=r"block weights need 1\.9\d GB .* GB short"):
        make_plan(plan_for(memory_gb=0.5), sizes)


def test_sites_near_each_other_are_found(sizes: Sizes) -> None:
    plan = plan_for(memory_gb=1.4)
    assert near_sites(plan, goal_of(plan), sizes, "east") == ("east", "west")
    plenty = plan_for()
    assert near_sites(plenty, goal_of(plenty), sizes, "west") == ("west",)


def test_all_blocks_have_a_server(sizes: Sizes) -> None:
    plan = plan_for(per_site=3, memory_gb=0.9)
    (group,) = groups_of(plan, goal_of(plan), sizes, said("all sites"))
    held = {block for one in group.servers for block in range(*one.blocks)}
    assert held == set(range(8))


def test_answers_may_be_as_short_as_a_token(sizes: Sizes) -> None:
    for num_tokens in (1, 8):
        planned = make_plan(plan_for(goal={"prompt_tokens": 8, "answer_tokens": num_tokens}), sizes)
        assert planned.outcomes[0].meets


def test_numbers_stand_for_a_model_of_that_size(sizes: Sizes) -> None:
    assert sizes.parameters == pytest.approx(1.1e9, rel=0.01)
    assert (sizes.num_blocks, sizes.cache_values_per_token) == (8, 2 * 2048)
    with pytest.raises(ValueError, match="lower layers or hidden_size"):
        sizes_of({"parameters": 1e8, "layers": 80, "hidden_size": 8192})


def test_more_tokens_than_the_model_has_positions_for(sizes: Sizes) -> None:
    with pytest.raises(ValueError, match="has positions for 131072: lower it by 32"):
        make_plan(plan_for(goal={"prompt_tokens": 131_072}), sizes)
