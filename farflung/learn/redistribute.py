"""Moves values between the layouts of one site's ranks: from the shards that train to the lanes that travel, and back.

Only what a rank lacks crosses the process group, a bounded number of values at a time; where each rank's lanes are its
own shards nothing does. Values cross in float32.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import distributed

from farflung.learn.tensor_shards import Holding, Layout, Piece, Transfer, plan_transfers

NUM_VALUES_MAX = 1 << 22
"""Values of one tensor that cross the process group in one collective."""


class Site:
    """The ranks that train one copy of the model, as one `torchrun` group or a single process without one."""

    def __init__(self, group: distributed.ProcessGroup | None = None) -> None:
        """`group`: all ranks of the site; None: the default group if there is one, else this process alone."""
        is_initialized = distributed.is_available() and distributed.is_initialized()
        self._group = group if group is not None or not is_initialized else distributed.group.WORLD
        self.rank = distributed.get_rank(self._group) if self._group is not None else 0
        self.num_ranks = distributed.get_world_size(self._group) if self._group is not None else 1
        is_on_device = self._group is not None and distributed.get_backend(self._group) == "nccl"
        self._device = torch.device("cuda", torch.cuda.current_device()) if is_on_device else torch.device("cpu")

    def gather(self, value: object) -> list[object]:
        """One value of every rank, in order of ranks."""
        if self._group is None:
            return [value]
        values: list[object] = [None] * self.num_ranks
        distributed.all_gather_object(values, value, group=self._group)  # pyright: ignore[reportUnknownMemberType]
        return values

    def add_up_(self, tensors: Iterable[torch.Tensor]) -> None:
        """Put the sum over all ranks in the place of each, to the same bits on every rank."""
        for tensor in tensors:
            distributed.all_reduce(tensor, group=self._group)  # pyright: ignore[reportUnknownMemberType]

    def layouts(self, own: Layout) -> list[Layout]:
        """The layouts of all ranks."""
        plain = {name: [tuple(piece) for piece in pieces] for name, pieces in own.items()}
        gathered: list[dict[str, list[tuple[str, int, int]]]] = self.gather(plain)  # pyright: ignore[reportAssignmentType]
        return [
            {name: tuple(Piece(*piece) for piece in pieces) for name, pieces in layout.items()} for layout in gathered
        ]

    def exchange(self, sent: Sequence[torch.Tensor], lengths: Sequence[int]) -> list[torch.Tensor]:
        """Send `sent[r]` to rank r and return what each rank sent here; 1-D, float32, on the CPU."""
        assert self._group is not None
        received = torch.empty(sum(lengths), dtype=sent[0].dtype, device=self._device)
        outgoing = torch.cat([part.reshape(-1) for part in sent]).to(self._device)
        sent_lengths = [part.numel() for part in sent]
        distributed.all_to_all_single(received, outgoing, list(lengths), sent_lengths, group=self._group)  # pyright: ignore[reportUnknownMemberType]
        return _split(received.cpu(), lengths)


class Redistribution:
    """A fixed way from one layout per rank to another. All ranks call `move` together."""

    def __init__(self, site: Site, sources: Sequence[Layout], targets: Sequence[Layout]) -> None:
        """`sources`, `targets`: what every rank holds before and after, the same lists on every rank."""
        names = dict.fromkeys(name for layout in targets for name in layout)
        self._site = site
        self._plans: dict[str, list[Transfer]] = {}
        self._source: dict[str, Holding] = {}
        self._target: dict[str, Holding] = {}
        for name in names:
            held = [Holding(layout.get(name, ())) for layout in sources]
            wanted = [layout.get(name, ()) for layout in targets]
            self._plans[name] = plan_transfers(held, wanted)
            self._source[name], self._target[name] = held[site.rank], Holding(wanted[site.rank])

    @property
    def num_values_moved(self) -> int:
        """Values that cross between ranks in one move."""
        plans = self._plans.values()
        return sum(transfer.piece.length for plan in plans for transfer in plan if transfer.source != transfer.target)

    def move(self, sources: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor]) -> None:
        """Copy into `targets` what its layout wants of `sources` (name -> local values, flat, contiguous)."""
        for name, plan in self._plans.items():
            if name in targets:
                self._copy_own(sources.get(name), targets[name], plan)
            crossing = [transfer for transfer in plan if transfer.source != transfer.target]
            for batch in _batches(crossing):
                self._move_batch(sources.get(name), targets.get(name), batch)

    def _copy_own(self, source: torch.Tensor | None, target: torch.Tensor, plan: Sequence[Transfer]) -> None:
        for transfer in plan:
            if transfer.source == transfer.target == self._site.rank:
                assert source is not None
                self._write(target, transfer.piece, self._read(source, transfer.piece))

    def _move_batch(self, source: torch.Tensor | None, target: torch.Tensor | None, batch: Sequence[Transfer]) -> None:
        rank = self._site.rank
        sent: list[torch.Tensor] = []
        for other in range(self._site.num_ranks):
            pieces = [transfer.piece for transfer in batch if (transfer.source, transfer.target) == (rank, other)]
            parts = [self._read(source, piece).to("cpu", torch.float32) for piece in pieces if source is not None]
            sent.append(torch.cat([*parts, torch.empty(0)]))
        arriving = [
            [transfer.piece for transfer in batch if (transfer.source, transfer.target) == (other, rank)]
            for other in range(self._site.num_ranks)
        ]
        lengths = [sum(piece.length for piece in pieces) for pieces in arriving]
        for pieces, values in zip(arriving, self._site.exchange(sent, lengths), strict=True):
            for piece, part in zip(pieces, _split(values, [piece.length for piece in pieces]), strict=True):
                assert target is not None
                self._write(target, piece, part)

    def _read(self, values: torch.Tensor, piece: Piece) -> torch.Tensor:
        parts = [values[first : first + part.length] for part, first in self._source[piece.name].find(piece)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _write(self, values: torch.Tensor, piece: Piece, new: torch.Tensor) -> None:
        for part, first in self._target[piece.name].find(piece):
            offset = part.offset - piece.offset
            values[first : first + part.length].copy_(new[offset : offset + part.length])


def _split(values: torch.Tensor, lengths: Sequence[int]) -> list[torch.Tensor]:
    ends = list(itertools.accumulate(lengths))
    return [values[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def _batches(transfers: Sequence[Transfer]) -> Iterator[list[Transfer]]:
    """Transfers in order, cut so that no batch is over the limit."""
    batch: list[Transfer] = []
    room = NUM_VALUES_MAX
    for transfer in transfers:
        piece = transfer.piece
        for first in range(piece.offset, piece.end, NUM_VALUES_MAX):
            part = Piece(piece.name, first, min(NUM_VALUES_MAX, piece.end - first))
            if part.length > room:
                yield batch
                batch, room = [], NUM_VALUES_MAX
            batch.append(Transfer(transfer.source, transfer.target, part))
            room -= part.length
    if batch:
        yield batch
