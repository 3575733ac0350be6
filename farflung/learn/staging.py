"""Copies of a site's states in the form that travels: float32 on the CPU, in lanes, beside the model that trains.

    states of all ranks ── collect ──> lanes of this rank ── the engine averages ──> lanes ── spread ──> states

A site whose ranks hold the whole model each (DDP) speaks through one rank and hands the result to the others: the link
between sites is what is scarce, and it belongs to the site; more speakers would share it, not widen it. With FSDP each
rank speaks for its own shard, so that no rank ever holds the whole model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from farflung.learn.parameters import Tensors
from farflung.learn.redistribute import Redistribution, Site
from farflung.learn.tensor_shards import Layout, Piece, cut_lanes, local_pieces, local_values

PARAMETERS = "parameters"
States = Mapping[str, Mapping[str, torch.Tensor]]
"""`parameters`, and whatever else there is one value of for each of theirs (moments, gradients), by name."""


@dataclass(frozen=True, slots=True)
class Lane:
    """What one worker of the engine averages: its share of every tensor, as flat views of the staged values."""

    number: int
    parameters: Tensors
    moments: dict[str, Tensors]
    """And whatever else was staged."""


class Staging:
    """The lanes of this rank. All ranks of a site make one, and call its methods, together."""

    def __init__(self, site: Site, states: States, num_lanes: int) -> None:
        """`states`: as they are on this rank; each of the others has an entry for some of the parameters."""
        parameters = states[PARAMETERS]
        shards = site.layouts({name: local_pieces(name, tensor) for name, tensor in parameters.items()})
        lanes = cut_lanes({name: tuple(tensor.shape) for name, tensor in parameters.items()}, num_lanes)
        speakers = [number * site.num_ranks // num_lanes for number in range(num_lanes)]
        spoken = [
            _joined([lanes[lane] for lane in range(num_lanes) if speakers[lane] == r]) for r in range(site.num_ranks)
        ]
        self._outward = Redistribution(site, shards, spoken)
        self._inward = Redistribution(site, spoken, shards)
        self._names = {state: list(tensors) for state, tensors in states.items()}
        own = spoken[site.rank]
        self._values: dict[str, Tensors] = {
            state: {name: torch.zeros(_length(own[name])) for name in names if name in own}
            for state, names in self._names.items()
        }
        self.lanes = [
            self._lane(number, lanes[number], own) for number in range(num_lanes) if speakers[number] == site.rank
        ]

    @torch.no_grad()
    def collect(self, states: States) -> None:
        """Copy these states, some or all, into the lanes."""
        for state, tensors in states.items():
            local = {name: local_values(tensors[name]).reshape(-1) for name in self._names[state]}
            self._outward.move(local, self._values[state])

    @torch.no_grad()
    def spread(self, states: States) -> None:
        """Copy the lanes into these states, some or all."""
        for state, tensors in states.items():
            shards = {name: local_values(tensors[name]) for name in self._names[state]}
            # Where values do not lie in order in memory, a copy that does is filled and copied back.
            local = {name: shard.reshape(-1) for name, shard in shards.items()}
            self._inward.move(self._values[state], local)
            for name, shard in shards.items():
                if not shard.is_contiguous():
                    shard.copy_(local[name].view(shard.shape))

    def _lane(self, number: int, lane: Layout, own: Layout) -> Lane:
        views = {
            state: {name: _view(values[name], own[name], lane[name]) for name in self._names[state] if name in lane}
            for state, values in self._values.items()
        }
        return Lane(number, views[PARAMETERS], {name: views[name] for name in self._names if name != PARAMETERS})


def _joined(lanes: Sequence[Layout]) -> Layout:
    names = dict.fromkeys(name for lane in lanes for name in lane)
    return {name: tuple(piece for lane in lanes for piece in lane.get(name, ())) for name in names}


def _length(pieces: Sequence[Piece]) -> int:
    return sum(piece.length for piece in pieces)


def _view(values: torch.Tensor, own: Sequence[Piece], lane: Sequence[Piece]) -> torch.Tensor:
    first = sum(piece.length for piece in own[: own.index(lane[0])])
    return values[first : first + _length(lane)]
