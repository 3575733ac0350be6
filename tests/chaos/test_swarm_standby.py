"""Standbys: after a loss only what is newest is computed again, by servers that nobody else had to wait for."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from farflung.sim.faults import Faults, nth
from farflung.systems.swarm.config import SessionConfig
from farflung.systems.swarm.history import History
from farflung.systems.swarm.messages import Edit, Hop, Step, Truncate
from farflung.systems.swarm.steps import Steps
from tests.chaos.swarm_load import plans_of
from tests.chaos.swarm_modes import MODES, same
from tests.chaos.test_swarm_many import CONFIGS, Cell, Load, check_all_is_free, load, struck
from tests.swarms import SimulatedSwarm, SmallModel, tokens

pytestmark = pytest.mark.chaos

SERVERS = {"a1": (0, 2), "a2": (0, 2), "b1": (2, 4), "b2": (2, 4)}
PROMPT_TOKENS, NEW_TOKENS, EVERY = 100, 24, 4
ALONE = SessionConfig(ask_again_seconds=0.5)
WITH_STANDBYS = dataclasses.replace(ALONE, is_standby_wanted=True, standby_num_positions=EVERY)


def answer(model: Any, prompt: torch.Tensor, **options: Any) -> torch.Tensor:
    return model.generate(
        prompt, do_sample=False, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, pad_token_id=0, **options
    )


@pytest.mark.parametrize("victims", [("a1",), ("b1",), ("a1", "b1")])
@pytest.mark.parametrize("is_wanted", [True, False])
def test_a_loss_costs_the_newest_positions_only(small: SmallModel, victims: Sequence[str], is_wanted: bool) -> None:
    prompt, faults = tokens(small, 1, PROMPT_TOKENS), Faults()
    for victim in victims:
        faults.crash(victim, when=nth("Step", 15, "deliver", target=victim))
    config = WITH_STANDBYS if is_wanted else ALONE
    with SimulatedSwarm(small, SERVERS, faults=faults, config=config) as swarm:
        with swarm.model.inference_session(num_tokens_max=200) as cache:
            said = answer(swarm.model, prompt)
            session = cache.session
        assert torch.equal(said, answer(small.whole, prompt))
        assert session.num_replaced == len(victims) and not any(map(swarm.simulation.is_alive, victims))
        if is_wanted:
            assert session.num_replayed < 3 * EVERY * len(victims)
        else:
            assert session.num_replayed >= PROMPT_TOKENS * len(victims)
        swarm.simulation.advance(1.0)
        check_all_is_free(swarm, swarm.cache_tokens_max)


def test_a_standby_that_is_lost_is_succeeded_and_does_not_disturb(small: SmallModel) -> None:
    servers = {**SERVERS, "b3": (2, 4)}
    faults = Faults().crash("b2", when=nth("Step", 2, "deliver", target="b2"))
    faults.crash("b1", when=nth("Step", 22, "deliver", target="b1"))
    config = dataclasses.replace(WITH_STANDBYS, standby_num_positions=1)
    with SimulatedSwarm(small, servers, faults=faults, config=config) as swarm:
        prompt = tokens(small, 1, PROMPT_TOKENS)
        with swarm.model.inference_session(num_tokens_max=200) as cache:
            assert torch.equal(answer(swarm.model, prompt), answer(small.whole, prompt))
            assert cache.session.num_replaced == 1, "the standby's own end is no business of the chain's"


def test_without_a_second_holder_nothing_happens_and_it_is_said_once(small: SmallModel) -> None:
    with SimulatedSwarm(small, {"a": (0, 2), "b1": (2, 4), "b2": (2, 3)}, config=WITH_STANDBYS) as swarm:
        for _ in range(2):
            prompt = tokens(small, 1, 20)
            assert torch.equal(answer(swarm.model, prompt), answer(small.whole, prompt))
        notes = [str(event) for event in swarm.simulation.trace.of("note") if "no second holder" in str(event)]
        assert len(notes) == 2 and "0:2" in notes[0] and "2:4" in notes[1]
        assert swarm.roles["b2"].num_sessions == 0


@pytest.mark.parametrize("mode", MODES)
def test_every_way_of_generating_goes_on_at_a_standby(small: SmallModel, mode: str) -> None:
    """Killed late, when the standbys have followed edits and padding; several moments, for what is under way then."""
    prompt = tokens(small, 2 if mode == "padded" else 1, 6)
    expected = MODES[mode](small.whole, prompt)
    config = dataclasses.replace(WITH_STANDBYS, standby_num_positions=1)
    num_kills = 0
    for number in (2, 5, 8):
        faults = Faults().crash("b1", when=nth("Step", number, "deliver", target="b1"))
        faults.crash("a1", when=nth("Output", number, "sent", source="a1"))
        with SimulatedSwarm(small, SERVERS, faults=faults, config=config) as swarm:
            assert same(MODES[mode](swarm.model, prompt), expected), number
            num_kills += sum(not swarm.simulation.is_alive(name) for name in ("a1", "b1"))
    assert num_kills >= 1 or mode == "prefill"


def one_step_too_far_ahead(patch: pytest.MonkeyPatch) -> None:
    """Planted bug: a standby is taken to have one step that it was never sent."""
    make = Steps.make

    def skipping(
        self: Steps, history: History, route: tuple[Hop, ...], base: int, number: int, *, is_background: bool = False
    ) -> Step:
        step = make(self, history, route, base, number, is_background=is_background)
        if not 0 < base < number - 1:
            return step
        late = make(self, history, route, base + 1, number, is_background=is_background)
        return dataclasses_replace(step, hidden=late.hidden, edits=late.edits)

    patch.setattr(Steps, "make", skipping)


def truncations_are_not_forwarded(patch: pytest.MonkeyPatch) -> None:
    """Planted bug: what was taken back meanwhile stays in a standby's cache."""
    edits = History.edits

    def without(self: History, base: int, upto: int) -> tuple[Edit, ...]:
        found = edits(self, base, upto)
        return found if base == upto - 1 else tuple(edit for edit in found if not isinstance(edit, Truncate))

    patch.setattr(History, "edits", without)


def dataclasses_replace(step: Step, **changes: Any) -> Step:
    fields = {name: getattr(step, name) for name in step.__struct_fields__}
    return Step(**{**fields, **changes})


@pytest.mark.parametrize("plant", [one_step_too_far_ahead, truncations_are_not_forwarded])
def test_planted_bugs_are_caught(
    small: SmallModel, plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    plans = plans_of(small, seed=5, num_sessions=8)
    calm: Load = load(small, plans, Faults(), CONFIGS["standbys"])
    assert calm.wrong(calm.run()) == [], "without faults it must go unnoticed"
    cells = [("before the step is seen", position, "crash", "standbys") for position in ("first", "middle", "last")]
    assert any(_goes_wrong(small, cell) for cell in cells), "this test would not have found the bug"


def _goes_wrong(small: SmallModel, cell: Cell) -> bool:
    try:
        return bool(struck(small, cell, num_sessions=8, is_late=True)[1])
    except Exception:  # noqa: BLE001  a planted bug may surface as any error; that is caught too
        return True
