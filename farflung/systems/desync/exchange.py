"""One exchange as a state machine: partial sums up the trees, means down, each member's part of it (no I/O).

Values are weighted so that partial sums tend to the mean itself. A member encodes each part once, as its partial sum
or, if it owns the part, as the mean; with a lossy codec what that loses is its residual, in units of the mean, and is
added to what it encodes for that place in the next exchange. The owner's encoded mean is what everyone decodes, it too:
all members end with the same bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from farflung.learn.codecs import coarsest
from farflung.systems.desync.config import AUTO
from farflung.systems.desync.messages import LinkCodec, Seat
from farflung.systems.desync.routes import Part
from farflung.wire.tensor import MalformedTensor, WireTensor, decode_tensor, encode_tensor
from farflung.world.errors import PeerMisbehaved


@dataclass(frozen=True, slots=True)
class Section:
    """A stretch of the vector that belongs to one state (`parameters`, `first_moment` ...)."""

    name: str
    first: int
    last: int
    codec: str
    """Between sites, and of the mean if the members are of several sites."""
    site_codec: str
    feedback_decay: float = 0.0
    """Share of the residual that is added; 0: no residual is kept."""


@dataclass(frozen=True, slots=True)
class Handed:
    """Something to send to the member of a seat."""

    seat: int
    index: int
    is_mean: bool
    tensor: WireTensor


class Exchange:
    """What one member does in one exchange."""

    def __init__(
        self,
        seats: Sequence[Seat],
        seat: int,
        sections: Sequence[Section],
        parts: Sequence[Part],
        values: torch.Tensor,
        residual: torch.Tensor,
        codecs: Sequence[LinkCodec] = (),
    ) -> None:
        """`values`: [length] float32, this member's own; `residual`: the same, or of no length if none is kept. Neither
        is changed. `codecs`: of the links whose sections have the codec `auto`."""
        self._seats = seats
        self._seat = seat
        self._sections = sections
        self._parts = parts
        self._values = values
        self._old_residual = residual
        self._link_codecs = {(one.source, one.target): one.codec for one in codecs}
        self.mean = torch.empty_like(values)
        """[length], complete once `is_done`."""
        self.residual = residual.clone()
        """What to keep if the exchange is committed."""
        self._mine = [index for index, part in enumerate(parts) if seat in part.tree.members]
        self._sums: dict[int, dict[int, torch.Tensor]] = {index: {} for index in self._mine}
        self._has_mean: dict[int, bool] = dict.fromkeys(self._mine, False)
        self._sent: dict[tuple[int, bool], Handed] = {}
        self._num_missing = len(self._mine)

    @property
    def is_done(self) -> bool:
        """Whether every mean is here."""
        return not self._num_missing

    def start(self) -> list[Handed]:
        """What needs nobody else's values."""
        handed: list[Handed] = []
        for index in self._mine:
            if not self._parts[index].tree.sources(self._seat):
                handed += self._add_up(index)
        return handed

    def receive(self, source: int, index: int, is_mean: bool, tensor: WireTensor) -> list[Handed]:
        """Take a partial sum or a mean from the member of seat `source`; what came before is ignored.

        Raises:
            PeerMisbehaved: it is none of its business, or the tensor is malformed.
        """
        peer = self._seats[source].address.peer
        if index not in self._has_mean:
            raise PeerMisbehaved(peer, f"sent part {index}, which is not for me")
        tree = self._parts[index].tree
        if is_mean:
            if tree.down.get(self._seat) != source:
                raise PeerMisbehaved(peer, f"sent a mean of part {index}, which is another's task")
            if self._has_mean[index]:
                return []
            self._put_mean(index, self._decode(source, index, tensor))
            return self._hand_down(index, tensor)
        if tree.up.get(source) != self._seat:
            raise PeerMisbehaved(peer, f"sent a sum of part {index} to the wrong member")
        if self._has_mean[index] or (index, False) in self._sent or source in self._sums[index]:
            return []
        self._sums[index][source] = self._decode(source, index, tensor)
        return self._add_up(index) if len(self._sums[index]) == len(tree.sources(self._seat)) else []

    def missing(self) -> dict[int, tuple[tuple[int, bool], ...]]:
        """What has not come, by the seat that it should come from."""
        wanted: dict[int, list[tuple[int, bool]]] = {}
        for index in self._mine:
            tree = self._parts[index].tree
            if self._has_mean[index]:
                continue
            if (index, False) in self._sent:
                wanted.setdefault(tree.down[self._seat], []).append((index, True))
            for source in tree.sources(self._seat):
                if (index, False) not in self._sent and source not in self._sums[index]:
                    wanted.setdefault(source, []).append((index, False))
        return {seat: tuple(keys) for seat, keys in sorted(wanted.items())}

    def again(self, seat: int, wanted: Sequence[tuple[int, bool]]) -> list[Handed]:
        """What of `wanted` was meant for that seat and has been sent already."""
        found = [self._sent.get(key) for key in wanted]
        return [
            Handed(seat, one.index, one.is_mean, one.tensor)
            for one in found
            if one is not None and seat in self._receivers(one)
        ]

    def _receivers(self, handed: Handed) -> tuple[int, ...]:
        tree = self._parts[handed.index].tree
        return tree.targets(self._seat) if handed.is_mean else (tree.up[self._seat],)

    def _weight(self, part: Part) -> float:
        total = sum(self._seats[member].weight for member in part.tree.members)
        return self._seats[self._seat].weight / total

    def _add_up(self, index: int) -> list[Handed]:
        """All partial sums are here: add the own values, and hand the sum on or make it the mean."""
        part = self._parts[index]
        values = self._values[part.first : part.last]
        if len(part.tree.members) == 1:
            self._put_mean(index, values)
            return []
        total = values * self._weight(part)
        sums = self._sums.pop(index)
        for source in part.tree.sources(self._seat):  # not in order of arrival: rounding must not depend on it
            total += sums[source]
        self._sums[index] = {}
        is_root = part.tree.root == self._seat
        wire = self._encode(part, total, self._codec(part, is_root))
        if is_root:
            self._put_mean(index, self._decode(self._seat, index, wire))
            return self._hand_down(index, wire)
        handed = Handed(part.tree.up[self._seat], index, False, wire)
        self._sent[index, False] = handed
        return [handed]

    def _codec(self, part: Part, is_mean: bool) -> str:
        section, tree = self._sections[part.section], part.tree
        seats = tree.members if is_mean else (self._seat, tree.up[self._seat])
        is_within = all(self._seats[seat].site == self._seats[seats[0]].site for seat in seats)
        codec = section.site_codec if is_within else section.codec
        if codec != AUTO:
            return codec
        if not is_mean:
            return self._link_codecs[self._seat, tree.up[self._seat]]
        # The bytes of a mean cross all links on its way down.
        links = [(source, target) for target, source in tree.down.items()]
        return coarsest(self._link_codecs[link] for link in links if link in self._link_codecs)

    def _encode(self, part: Part, total: torch.Tensor, codec: str) -> WireTensor:
        section = self._sections[part.section]
        if not section.feedback_decay:
            return encode_tensor(total, codec)
        span = slice(part.first, part.last)
        total = total.add_(self._old_residual[span], alpha=section.feedback_decay)
        wire = encode_tensor(total, codec)
        self.residual[span] = total - decode_tensor(wire)
        return wire

    def _decode(self, source: int, index: int, wire: WireTensor) -> torch.Tensor:
        part = self._parts[index]
        length = part.last - part.first
        try:
            if wire.shape != (length,) or wire.dtype != "float32":
                raise MalformedTensor(f"{wire.dtype} {wire.shape} for part {index} of {length} values")
            return decode_tensor(wire, num_bytes_max=4 * length)
        except MalformedTensor as error:
            raise PeerMisbehaved(self._seats[source].address.peer, str(error)) from None

    def _put_mean(self, index: int, values: torch.Tensor) -> None:
        part = self._parts[index]
        self.mean[part.first : part.last] = values
        self._has_mean[index] = True
        self._num_missing -= 1

    def _hand_down(self, index: int, wire: WireTensor) -> list[Handed]:
        targets = self._parts[index].tree.targets(self._seat)
        handed = [Handed(target, index, True, wire) for target in targets]
        if handed:
            self._sent[index, True] = handed[0]
        return handed
