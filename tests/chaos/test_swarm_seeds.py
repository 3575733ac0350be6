"""Random crashes, power losses, freezes, partitions and 3 % loss over three sites: every answer is the undisturbed one.

`make test` runs a slice of the seeds, `make chaos` all. Two bugs are planted, to show that these very runs catch them.
"""

import functools
from collections.abc import Callable

import pytest
import torch

from farflung.sim.faults import Faults
from farflung.systems.swarm import history
from tests.chaos.swarm_modes import MODES, same
from tests.swarms import SimulatedSwarm, SmallModel, tokens

pytestmark = pytest.mark.chaos

SERVERS = {"a1": (0, 2), "a2": (0, 2), "b1": (2, 4), "b2": (2, 4), "c1": (1, 3)}
SITES = {"a1": "asia", "a2": "europe", "b1": "europe", "b2": "america", "c1": "america"}
NUM_SEEDS, NUM_SEEDS_QUICK = 504, 42
VIRTUAL_SECONDS_MAX = 400.0


@functools.cache
def expected(small: SmallModel, mode: str) -> torch.Tensor:
    return MODES[mode](small.whole, tokens(small, 2 if mode == "padded" else 1, 6))


def mode_of(seed: int) -> str:
    return list(MODES)[seed % len(MODES)]


def survives(small: SmallModel, seed: int) -> tuple[bool, int]:
    """Whether the answer under this seed's faults is right, and how many faults it met while it ran."""
    mode = mode_of(seed)
    faults = Faults.random(seed, sorted(SERVERS), until=3.0, num_faults=4, loss=0.03, sites=sorted(set(SITES.values())))
    with SimulatedSwarm(small, SERVERS, sites=SITES, seed=seed, faults=faults) as swarm:
        output = MODES[mode](swarm.model, tokens(small, 2 if mode == "padded" else 1, 6))
        num_met = sum(1 for _ in swarm.simulation.trace.of("fault")) + sum(1 for _ in swarm.simulation.trace.of("loss"))
        is_in_time = swarm.simulation.now() < VIRTUAL_SECONDS_MAX
    return same(output, expected(small, mode)) and is_in_time, num_met


def check(small: SmallModel, seeds: range) -> None:
    results = {seed: survives(small, seed) for seed in seeds}
    assert [seed for seed, (is_right, _) in results.items() if not is_right] == []
    assert sum(num_met for _, num_met in results.values()) > 5 * len(seeds), "the faults must strike while it runs"


def test_some_seeds(small: SmallModel) -> None:
    check(small, range(NUM_SEEDS_QUICK))


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_all_seeds(small: SmallModel) -> None:
    check(small, range(NUM_SEEDS))


def no_truncation_on_retry(patch: pytest.MonkeyPatch) -> None:
    """Planted bug: what is replayed to a replacement still contains the positions that were rolled back."""

    def keep_all(tensor: torch.Tensor, rows: torch.Tensor | None, num_positions: int) -> torch.Tensor:
        return tensor if rows is None else tensor.index_select(0, rows)

    patch.setattr(history, "_pick", keep_all)


def history_in_the_wrong_order(patch: pytest.MonkeyPatch) -> None:
    """Planted bug: a replacement gets the newest steps first."""
    inputs = history.History.inputs

    def newest_first(self: history.History, block: int, base: int, upto: int) -> torch.Tensor:
        hidden = inputs(self, block, base, upto)
        num_newest = self.step(upto).num_positions
        return torch.cat([hidden[:, -num_newest:], hidden[:, :-num_newest]], dim=1)

    patch.setattr(history.History, "inputs", newest_first)


@pytest.mark.parametrize("plant", [no_truncation_on_retry, history_in_the_wrong_order])
def test_planted_bugs_are_caught(
    small: SmallModel, plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    for mode in MODES:
        with SimulatedSwarm(small, SERVERS, sites=SITES) as calm:
            prompt = tokens(small, 2 if mode == "padded" else 1, 6)
            assert same(MODES[mode](calm.model, prompt), expected(small, mode)), "without faults it must go unnoticed"
    seeds = [seed for seed in range(4 * NUM_SEEDS_QUICK) if mode_of(seed) in ("lookup", "rollback")]
    caught = [seed for seed in seeds if not _survives_bugged(small, seed)]
    assert len(caught) >= 3, "these runs would not have found the bug"


def _survives_bugged(small: SmallModel, seed: int) -> bool:
    try:
        return survives(small, seed)[0]
    except Exception:  # noqa: BLE001  a planted bug may surface as any error; that is caught too
        return False
