"""A game of several turns for the alignment benchmarks: Gymnasium's frozen lake, a new one for every problem.

The policy sees the map once, then after each of its moves where it stands. A hole ends the game, and so do eight moves,
two more than the shortest way has; reaching the goal is worth 1. The small model that begins is pretrained on games of
somebody who knows the shortest way and makes every third move at random.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import gymnasium
import torch
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv, generate_random_map

from farflung.apps.align.environment_config import EnvironmentConfig
from farflung.apps.align.small_policy import END, PADDING, Pretraining, small_policy

SIDE = 4
NUM_CELLS = SIDE * SIDE
CELLS = "abcdefghijklmnop"
MOVES = "<v>^"
"""In the order of Gymnasium's actions."""
VOCABULARY = [*"SFHG", *MOVES, *CELLS, END, PADDING]
TURNS_MAX = 8
ANSWER_TOKENS = 3 * TURNS_MAX - 1
"""A move, the end of the turn, and where one stands then; nothing is told after the last."""
FROZEN_SHARE = 0.8
LAKES_KEPT = 4096
PRETRAINING = Pretraining(num_steps=1500, context_length_max=NUM_CELLS + ANSWER_TOKENS + 1)
BATCH_SIZE = 128
RANDOM_MOVE_SHARE = 0.35
FAR = 99


class Lake(gymnasium.Env[str, str]):
    """A lake whose map depends on the seed; moves and what is seen are text."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin on the map of this seed; shows it."""
        rows = _map_of(seed or 0)
        self._lake = _lake_of(rows)
        self._lake.reset(seed=seed)
        return "".join(rows), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Move; what is no move leaves one where one is."""
        if action not in MOVES or len(action) != 1:
            return CELLS[int(self._lake.s)], 0.0, False, False, {}
        cell, reward, is_ended, *_ = self._lake.step(MOVES.index(action))
        return CELLS[int(cell)], float(reward), is_ended, False, {}


@functools.lru_cache(LAKES_KEPT)
def _map_of(seed: int) -> tuple[str, ...]:
    return tuple(generate_random_map(SIDE, FROZEN_SHARE, seed))


@functools.lru_cache(LAKES_KEPT)
def _lake_of(rows: tuple[str, ...]) -> FrozenLakeEnv:
    return FrozenLakeEnv(desc=list(rows), is_slippery=False)


ENVIRONMENT = EnvironmentConfig(
    kind="gymnasium", name=f"{__name__}:Lake", parse="builtins:str", show="builtins:str", turns_max=TURNS_MAX
)


def lake_model(folder: Path) -> Path:
    """The folder of the pretrained model; trains it unless it is there already."""
    target = folder / f"lake-{PRETRAINING.num_steps}-{RANDOM_MOVE_SHARE}"
    if not target.is_dir():
        print("Pretraining a model of about 105,000 parameters that crosses a lake; this takes minutes, once.")
    return small_policy(target, VOCABULARY, PRETRAINING, _texts)


def _next_cells() -> torch.Tensor:
    """Where each move leads, int64 [cell, move]; a wall leaves one where one is."""
    row, column = torch.arange(NUM_CELLS) // SIDE, torch.arange(NUM_CELLS) % SIDE
    steps = torch.tensor([(0, -1), (1, 0), (0, 1), (-1, 0)])
    return (row[:, None] + steps[:, 0]).clamp(0, SIDE - 1) * SIDE + (column[:, None] + steps[:, 1]).clamp(0, SIDE - 1)


NEXT_CELLS = _next_cells()


def _distances(is_hole: torch.Tensor) -> torch.Tensor:
    """Moves to the goal from each cell, int64 [N, cell]; FAR: there is no way."""
    distances = torch.full(is_hole.shape, FAR)
    distances[:, -1] = 0
    for _ in range(NUM_CELLS):
        nearest = distances[:, NEXT_CELLS].amin(dim=2) + 1
        distances = torch.where(is_hole, FAR, torch.minimum(distances, nearest))
    return distances


def _solvable(stream: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Random maps with a way, bool [N, cell] where the holes are, and the distances."""
    is_hole = torch.rand((2 * BATCH_SIZE, NUM_CELLS), generator=stream) >= FROZEN_SHARE
    is_hole[:, 0] = is_hole[:, -1] = False
    distances = _distances(is_hole)
    found = (distances[:, 0] < FAR).nonzero()[:BATCH_SIZE, 0]
    return is_hole[found], distances[found]


def _texts(stream: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Games, int64 [N, T]; moves and the ends of turns are learned."""
    is_hole, distances = _solvable(stream)
    games = torch.arange(len(is_hole))
    maps = torch.where(is_hole, VOCABULARY.index("H"), VOCABULARY.index("F"))
    maps[:, 0], maps[:, -1] = VOCABULARY.index("S"), VOCABULARY.index("G")
    cells = torch.zeros(len(games), dtype=torch.long)
    is_over = torch.zeros(len(games), dtype=torch.bool)
    columns, learned = [maps[:, [place]] for place in range(NUM_CELLS)], [torch.zeros(len(games), 1, dtype=torch.bool)]
    learned *= NUM_CELLS
    for _ in range(TURNS_MAX):
        ahead = distances[games[:, None], NEXT_CELLS[cells]].double()
        best = (ahead + torch.rand(ahead.shape, generator=stream, dtype=torch.double) / 2).argmin(dim=1)
        any_move = torch.randint(0, len(MOVES), best.shape, generator=stream)
        is_random = torch.rand(best.shape, generator=stream) < RANDOM_MOVE_SHARE
        moves = torch.where(is_random, any_move, best)
        cells = torch.where(is_over, cells, NEXT_CELLS[cells, moves])
        end = torch.full_like(moves, VOCABULARY.index(END))
        columns += [VOCABULARY.index("<") + moves[:, None], end[:, None], VOCABULARY.index("a") + cells[:, None]]
        learned += [~is_over[:, None], ~is_over[:, None], torch.zeros_like(is_over)[:, None]]
        is_over = is_over | is_hole[games, cells] | (cells == NUM_CELLS - 1)
    return torch.cat(columns, dim=1), torch.cat(learned, dim=1)
