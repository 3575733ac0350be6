"""Many sessions of several clients at once, with and without standbys, while servers die, stall, go deaf and move: each
says what it would alone."""

import dataclasses
import functools
import itertools
import random
from collections import Counter
from collections.abc import Callable

import pytest

from farflung.model.pages import PAGE_TOKENS
from farflung.sim.faults import Faults, nth
from farflung.sim.station import MessageEvent
from farflung.systems.swarm.config import SessionConfig
from tests.chaos.swarm_load import Load, Plan, move, plans_of
from tests.swarms import SimulatedSwarm, SmallModel

pytestmark = pytest.mark.chaos

SERVERS = {"a1": (0, 2), "a2": (0, 2), "b1": (2, 3), "b2": (2, 3), "c1": (3, 4), "c2": (3, 4)}
POSITIONS = {"first": "a1", "middle": "b1", "last": "c1"}
CACHE_TOKENS_SCARCE = 800
"""Far less than all sessions together need, so that some give way and replay."""
CACHE_TOKENS = 6000
ALONE = SessionConfig(ask_again_seconds=0.5, piece_positions=PAGE_TOKENS)
WITH_STANDBYS = dataclasses.replace(ALONE, is_standby_wanted=True, standby_num_positions=3)
CONFIGS = {"alone": ALONE, "standbys": WITH_STANDBYS}
PHASES = {
    "before the step is seen": ("Step", "deliver", "target"),
    "after computing, before anything left": ("Output", "send", "source"),
    "after the copy left": ("Output", "sent", "source"),
    "before the push leaves": ("Step", "send", "source"),
    "after the push left": ("Step", "sent", "source"),
}
Cell = tuple[str, str, str, str]
"""Phase, position, kind of fault, and configuration."""
BACK_SECONDS = 1.5
"""After so long a server that was struck is itself again."""


def crash(swarm: SimulatedSwarm, victim: str) -> None:
    swarm.simulation.crash(victim)
    swarm.simulation.at(swarm.simulation.now() + BACK_SECONDS, lambda: swarm.simulation.restart(victim))


def lose_power(swarm: SimulatedSwarm, victim: str) -> None:
    swarm.simulation.crash(victim, is_silent=True)
    swarm.simulation.at(swarm.simulation.now() + BACK_SECONDS, lambda: swarm.simulation.restart(victim))


def stall(swarm: SimulatedSwarm, victim: str) -> None:
    swarm.simulation.freeze(victim)
    swarm.simulation.at(swarm.simulation.now() + BACK_SECONDS, lambda: swarm.simulation.thaw(victim))


def go_deaf(swarm: SimulatedSwarm, victim: str) -> None:
    """Whatever is sent to it or by it is lost for a while."""
    groups = {"site": 0, victim: 1}
    swarm.simulation.cut(groups)
    swarm.simulation.at(swarm.simulation.now() + BACK_SECONDS, lambda: swarm.simulation.heal(groups))


def move_away(swarm: SimulatedSwarm, victim: str) -> None:
    """It serves what its right neighbour does from soon on, and drops its sessions."""
    _, last = SERVERS[victim]
    move(swarm, victim, ((last - 1) % 4, (last - 1) % 4 + 1) if last == 4 else (last, last + 1), swarm.simulation.now())


FAULTS: dict[str, Callable[[SimulatedSwarm, str], None]] = {
    kind.__name__: kind for kind in (crash, lose_power, stall, go_deaf, move_away)
}
MATRIX = [
    (phase, position, kind, config)
    for phase, position, kind, config in itertools.product(PHASES, POSITIONS, FAULTS, CONFIGS)
    if not (position == "last" and "push" in phase)
]
SLICE = MATRIX[::17]
"""Every kind of fault, position, phase and configuration is in it."""


def load(
    small: SmallModel, plans: list[Plan], faults: Faults, config: SessionConfig = ALONE, cache: int = CACHE_TOKENS
) -> Load:
    return Load(small, plans, SimulatedSwarm(small, SERVERS, faults=faults, config=config, cache_tokens_max=cache))


def check_all_is_free(swarm: SimulatedSwarm, num_tokens: int) -> None:
    """No session is left, promised or held, on any server that lives."""
    for name, role in swarm.roles.items():
        if swarm.simulation.is_alive(name):
            assert role.num_sessions == 0 and role.info({}).cache_tokens_left == num_tokens, name


@pytest.mark.parametrize("config", CONFIGS)
def test_many_sessions_say_what_each_would_alone(small: SmallModel, config: str) -> None:
    many = load(small, plans_of(small, seed=1, num_sessions=32), Faults(), CONFIGS[config], CACHE_TOKENS_SCARCE)
    assert many.wrong(many.run()) == []
    notes = [str(event) for event in many.swarm.simulation.trace.of("note")]
    assert any("gives way" in note for note in notes), "the cache was to be too small"
    check_all_is_free(many.swarm, CACHE_TOKENS_SCARCE)


@functools.cache
def undisturbed(small: SmallModel, config: str, num_sessions: int) -> Counter[tuple[str, str, str, str]]:
    """How often each phase comes at each server when nothing strikes: (kind, phase, side, server)."""
    many = load(small, plans_of(small, 2, num_sessions), Faults(), CONFIGS[config])
    seen: Counter[tuple[str, str, str, str]] = Counter()

    def count(event: MessageEvent) -> None:
        for side, node in (("source", event.source), ("target", event.target)):
            seen[event.kind, event.phase, side, node] += 1

    many.swarm.simulation.watch(count)
    assert many.wrong(many.run()) == []
    return seen


def struck(small: SmallModel, cell: Cell, num_sessions: int, *, is_late: bool = False) -> tuple[Load, list[Plan]]:
    """One cell of the matrix, at any of its moments or at one of the last: the load, and the plans that went wrong."""
    phase, position, kind, config = cell
    victim, (message, moment, side) = POSITIONS[position], PHASES[phase]
    num_moments = undisturbed(small, config, num_sessions)[message, moment, side, victim]
    number = random.Random(str(cell)).randint(num_moments // 2 if is_late else 1, num_moments)
    when = nth(message, number, moment, **{side: victim})
    many = load(small, plans_of(small, 2, num_sessions), Faults(), CONFIGS[config])
    is_due = True

    def watch(event: MessageEvent) -> None:
        nonlocal is_due
        if is_due and when(event):
            is_due = False
            FAULTS[kind](many.swarm, victim)

    many.swarm.simulation.watch(watch)
    wrong = many.wrong(many.run())
    assert not is_due, f"nothing struck in {cell}"
    return many, wrong


@pytest.mark.parametrize("cell", SLICE, ids=str)
def test_a_server_struck_among_many_sessions_changes_nothing(small: SmallModel, cell: Cell) -> None:
    many, wrong = struck(small, cell, num_sessions=8)
    assert wrong == []
    check_all_is_free(many.swarm, CACHE_TOKENS)


@pytest.mark.slow
@pytest.mark.parametrize("cell", MATRIX, ids=str)
def test_the_whole_matrix(small: SmallModel, cell: Cell) -> None:
    many, wrong = struck(small, cell, num_sessions=32)
    assert wrong == []
    check_all_is_free(many.swarm, CACHE_TOKENS)


def survives(small: SmallModel, seed: int) -> list[Plan]:
    """Plans that went wrong under a seed's faults: whatever servers can meet, and one that moves."""
    stream = random.Random(f"{seed}:many")
    faults = Faults.random(seed, sorted(SERVERS), until=3.0, num_faults=5, loss=0.03, sites=["site"])
    faults.duplicate(0.03, during=(0, 3.0))
    config, cache = CONFIGS[stream.choice([*CONFIGS])], stream.choice([CACHE_TOKENS_SCARCE, CACHE_TOKENS])
    many = load(small, plans_of(small, seed + 10, 32, num_new_max=16), faults, config, cache)
    move_away(many.swarm, stream.choice([*SERVERS]))
    return many.wrong(many.run())


NUM_SEEDS, NUM_SEEDS_QUICK = 100, 2


@pytest.mark.parametrize("seed", range(NUM_SEEDS_QUICK))
def test_some_seeds_of_everything_at_once(small: SmallModel, seed: int) -> None:
    assert survives(small, seed) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(NUM_SEEDS_QUICK, NUM_SEEDS))
def test_everything_at_once(small: SmallModel, seed: int) -> None:
    assert survives(small, seed) == []
