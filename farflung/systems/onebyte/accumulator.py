"""Exact sums of steps: int32 accumulators that are the same whatever the order, the batches and the machine.

    accumulator += sum over entries of c * a b^T         W = W0 - accumulator * 2^-K, rounded once

Products are computed in float32 as one matrix multiplication for many entries, which is exact as long as no sum of
absolute values reaches 2^24: the result goes to the integers before it does. Only one tensor's product and a bounded
number of directions are in memory beside the accumulators.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from farflung.systems.onebyte.directions import Directions, draw_in_pieces, largest_value
from farflung.systems.onebyte.header import HASH_BYTES, Header, TensorShape
from farflung.systems.onebyte.steps import Step, bounded_batches, joined_steps, movement_bound

EXACT_MAX = {torch.float32: 1 << 24, torch.float64: 1 << 53}
"""Integers up to this are exact."""
INTEGER_MAX = (1 << 31) - 1
BATCH_MOVEMENT_MAX = 1 << 29
"""Steps that are added at a time move no element further: sums are looked at between, before they could overflow."""
DIRECTION_ELEMENTS_MAX = 1 << 23
"""Random values of one batch of entries: 32 MB as float32."""
PRODUCT_ELEMENTS_MAX = 1 << 22
"""Of a product: 16 MB."""
CHUNK_ELEMENTS = 1 << 18
"""Weights that are rounded at a time, in float64."""


class Accumulators:
    """The sum of all steps so far, for each tensor of a run."""

    def __init__(
        self,
        header: Header,
        tensors: Sequence[TensorShape] | None = None,
        *,
        device: torch.device | str = "cpu",
        folder: Path | None = None,
    ) -> None:
        """`tensors`: only these of the run's. `folder`: keep the sums in files there, mapped into memory, so that they
        need none of their own; what an earlier life left there is dropped."""
        self.header = header
        self.tensors = header.tensors if tensors is None else tuple(tensors)
        self.sums = {tensor.name: _zeros(tensor, number, device, folder) for number, tensor in enumerate(self.tensors)}
        self._largest_value = largest_value(header)
        self._bound = 0

    @torch.no_grad()
    def add(self, steps: Iterable[Step]) -> None:
        """Add steps, all at once for each tensor: many together are much faster than one by one.

        Raises:
            ValueError: a weight might move further than 32 bits can count, or torch may not multiply exactly.
        """
        if torch.get_float32_matmul_precision() != "highest":
            raise ValueError(
                "torch may round float32 products here, and sums of a journal must be exact: call "
                "torch.set_float32_matmul_precision('highest') first"
            )
        for batch in bounded_batches(joined_steps(steps), BATCH_MOVEMENT_MAX // self._largest_value):
            self._require_room(movement_bound(batch) * self._largest_value)
            for tensor in self.tensors:
                self._add_to(tensor, batch)

    def digest(self) -> bytes:
        """32 bytes that stand for all sums: replicas that hold the same weights have the same."""
        return state_digest({tensor.name: sums_digest(tensor, self.sums[tensor.name]) for tensor in self.tensors})

    def _require_room(self, bound: int) -> None:
        """Bounds add up pessimistically, so the sums themselves are looked at before a step is refused."""
        if self._bound + bound > INTEGER_MAX:
            self._bound = max(int(sums.abs().max()) for sums in self.sums.values())
        if self._bound + bound > INTEGER_MAX:
            raise ValueError(
                "a weight may move further than this journal can count: go on in a new run from the replayed model, "
                "or choose a smaller exponent"
            )
        self._bound += bound

    def _add_to(self, tensor: TensorShape, steps: Sequence[Step]) -> None:
        sums = self.sums[tensor.name]
        product = _Product(tensor, sums.view(tensor.rows, tensor.shape[-1]), self._largest_value)
        for step in steps:
            for slots, directions in draw_in_pieces(
                self.header, tensor, step.base_round, step.slots, DIRECTION_ELEMENTS_MAX, sums.device
            ):
                first = slots.start - step.first_slot
                product.add(directions, step.weights[first : first + len(slots)])
        product.flush()


def sums_digest(tensor: TensorShape, sums: torch.Tensor) -> bytes:
    """32 bytes that stand for one tensor's sums."""
    digest = hashlib.blake2b(digest_size=HASH_BYTES, person=b"farflung sums")
    digest.update(f"{tensor.name}\0{list(tensor.shape)}\0".encode())
    digest.update(np.ascontiguousarray(sums.cpu().numpy().astype("<i4", copy=False)).data)
    return digest.digest()


def state_digest(digests: Mapping[str, bytes]) -> bytes:
    """32 bytes that stand for the sums of all tensors, by name."""
    content = b"".join(digests[name] for name in sorted(digests))
    return hashlib.blake2b(content, digest_size=HASH_BYTES, person=b"farflung state").digest()


class _Product:
    """Collects entries until they make a matrix multiplication worth while, as long as its result is exact."""

    def __init__(self, tensor: TensorShape, sums: torch.Tensor, largest_value: int) -> None:
        self._sums = sums
        self._bound = 0
        # Gaussian directions are integers of eleven bits, which leave float32 too few for the weights.
        self._dtype = torch.float32 if largest_value == 1 else torch.float64
        self._bound_max = (EXACT_MAX[self._dtype] - 1) // largest_value
        self._waiting: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._num_waiting = 0
        self._num_waiting_max = max(1, DIRECTION_ELEMENTS_MAX // (tensor.rows + tensor.shape[-1]))

    def add(self, directions: Directions, weights: np.ndarray) -> None:
        first = 0
        while first < len(weights):
            sizes = np.cumsum(np.abs(weights[first:]))
            count = int(np.searchsorted(sizes, self._bound_max - self._bound, side="right"))
            if count == 0:
                assert self._bound, "a single entry is exact"
                self.flush()
                continue
            self._take(directions, weights, slice(first, first + count))
            self._bound += int(sizes[count - 1])
            first += count

    def _take(self, directions: Directions, weights: np.ndarray, entries: slice) -> None:
        column = torch.from_numpy(weights[entries]).to(self._sums.device, self._dtype).unsqueeze(1)
        if directions.values is not None:
            self._sums += (column.t() @ directions.values[entries].to(self._dtype)).view_as(self._sums).to(torch.int32)
            return
        assert directions.left is not None and directions.right is not None
        self._waiting.append((directions.left[entries], directions.right[entries], column))
        self._num_waiting += len(column)
        if self._num_waiting >= self._num_waiting_max:
            self.flush()

    def flush(self) -> None:
        """Bring everything into the integers, some rows at a time."""
        if self._waiting:
            left, right, column = (torch.cat(each) for each in zip(*self._waiting, strict=True))
            weighted = right.to(self._dtype).mul_(column)
            size = max(1, PRODUCT_ELEMENTS_MAX // self._sums.shape[1])
            for first in range(0, len(self._sums), size):
                rows = slice(first, first + size)
                self._sums[rows] += (left[:, rows].to(self._dtype).t() @ weighted).to(torch.int32)
        self._waiting, self._num_waiting, self._bound = [], 0, 0


def _zeros(tensor: TensorShape, number: int, device: torch.device | str, folder: Path | None) -> torch.Tensor:
    if folder is None:
        return torch.zeros(tensor.shape, dtype=torch.int32, device=device)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{number:05}.sums"
    path.unlink(missing_ok=True)  # an earlier life's sums are made again from the journal
    return torch.from_file(str(path), shared=True, size=tensor.num_elements, dtype=torch.int32).view(tensor.shape)


@torch.no_grad()
def write_tuned(target: torch.Tensor, base: torch.Tensor, sums: Sequence[torch.Tensor], exponent: int) -> None:
    """Write base - (the sum of `sums`) * 2^-exponent into `target`, which may be `base` itself.

    It is computed in float64 and rounded once to the dtype of `target`.
    """
    flat, flat_base, flat_sums = target.view(-1), base.reshape(-1), [each.reshape(-1) for each in sums]
    for start in range(0, flat.numel(), CHUNK_ELEMENTS):
        part = slice(start, start + CHUNK_ELEMENTS)
        total = torch.stack([each[part].long() for each in flat_sums]).sum(0)
        flat[part] = flat_base[part].double().sub_(total.double(), alpha=2.0**-exponent).to(target.dtype)
