"""The equations of HALoS on a server's model, part by part: apply an update, push a difference, merge a model.

A part's tensors are flat views of the model's, so that nothing of the model's size is ever made. Every rule works value
by value: parts one after another give what the whole at once would.
"""

import hashlib
from collections.abc import Mapping, Sequence

import msgspec
import torch

from farflung.learn.feedback import ErrorFeedback
from farflung.learn.parameters import Tensors, copies
from farflung.learn.rules import Rule, RuleState
from farflung.wire.parts import Part, TensorSlice, paste_part, plan_of, run
from farflung.wire.tensor import MalformedTensor, WireTensor, decode_tensor, encode_tensor

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[TensorSlice, ...])
_saved_decoder = msgspec.msgpack.Decoder(tuple[dict[str, bytes], dict[str, WireTensor]])


def encode_part(tensors: Mapping[str, torch.Tensor], part: Part, codec: str) -> bytes:
    """The values of `part`, as slices in bytes of their own."""
    return _encoder.encode(
        tuple(
            TensorSlice(name, offset, encode_tensor(run(tensors[name], offset, length), codec))
            for name, offset, length in part
        )
    )


def decode_part(data: bytes | memoryview, part: Part) -> Tensors:
    """Flat float32 tensors by name, one for each slice of `part`.

    Raises:
        MalformedTensor: these are no slices, not those of `part`, or not finite.
    """
    try:
        slices = _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise MalformedTensor(f"no slices: {error}") from None
    target = {name: torch.empty(length) for name, _, length in part}
    local = tuple(plan._replace(offset=0) for plan in part)
    for one, plan in zip(slices, part, strict=False):
        if (one.name, one.offset) != (plan.name, plan.offset):
            raise MalformedTensor(f"a slice of {one.name[:80]!r} at {one.offset} where {plan.name!r} was expected")
    paste_part(target, [TensorSlice(one.name, 0, one.tensor) for one in slices], expected=local)
    if not all(bool(tensor.isfinite().all()) for tensor in target.values()):
        raise MalformedTensor("values that are not finite")
    return target


def add_parts(base: bytes, difference: bytes | memoryview, part: Part) -> bytes:
    """A part whose values are those of two together, float32: the same at both ends to the last bit."""
    total, change = decode_part(base, part), decode_part(difference, part)
    raw = {name: encode_tensor(total[name] + change[name]) for name in total}
    return _encoder.encode(tuple(TensorSlice(name, offset, raw[name]) for name, offset, _ in part))


def digest(data: bytes | memoryview) -> bytes:
    """SHA-256 of a part's bytes."""
    return hashlib.sha256(data).digest()


def layout(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """SHA-256 over names and shapes."""
    text = "\n".join(f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(tensors.items()))
    return hashlib.sha256(text.encode()).digest()


def part_bytes(parts: Sequence[Part]) -> int:
    """Float32 bytes of the largest part."""
    return max(sum(plan.length for plan in part) for part in parts) * torch.float32.itemsize


def views(tensors: Mapping[str, torch.Tensor], part: Part) -> Tensors:
    """The values of `part` themselves."""
    return {name: run(tensors[name], offset, length) for name, offset, length in part}


class Compressor:
    """Encodes differences part by part; what a lossy codec loses of one is added to the next one of the same part."""

    def __init__(self, codec: str) -> None:
        self._codec = codec
        self._feedback: dict[int, ErrorFeedback] = {}

    def encode(self, delta: Tensors, index: int, part: Part) -> bytes:
        """Flat tensors by name, one for each slice of `part`, which has this index, as slices."""
        if self._codec == "raw":
            coded = {name: encode_tensor(values) for name, values in delta.items()}
        else:
            coded = self._feedback.setdefault(index, ErrorFeedback()).compress(delta, self._codec)
        return _encoder.encode(tuple(TensorSlice(name, offset, coded[name]) for name, offset, _ in part))

    def residual(self, index: int) -> Tensors:
        """What is owed of that part."""
        return self._feedback[index].state() if index in self._feedback else {}

    def load(self, index: int, residual: Tensors) -> None:
        """Owe that of that part."""
        self._feedback[index] = ErrorFeedback()
        self._feedback[index].load(residual)


class ServedModel:
    """A server's model with its rule's memory; `snapshot` (of local servers) is the model as it was last merged."""

    def __init__(
        self,
        parameters: Mapping[str, torch.Tensor],
        rule: Rule,
        values_per_part: int,
        *,
        codec_push: str = "raw",
        has_snapshot: bool = False,
    ) -> None:
        assert all(tensor.dtype == torch.float32 for tensor in parameters.values()), "servers keep float32"
        self.parameters = {name: tensor.contiguous() for name, tensor in copies(parameters).items()}
        self.state = rule.init(self.parameters)
        self.snapshot = copies(self.parameters) if has_snapshot else {}
        self.parts = plan_of(self.parameters, values_per_part)
        self._rule = rule
        self._compressor = Compressor(codec_push)

    @property
    def num_parts(self) -> int:
        return len(self.parts)

    @torch.no_grad()
    def apply_part(self, index: int, data: bytes) -> None:
        """DN.step(theta, d) on one part; `end_update` counts the whole."""
        part = self.parts[index]
        memory = {name: views(tensors, part) for name, tensors in self.state.tensors.items()}
        self._rule.update(views(self.parameters, part), decode_part(data, part), RuleState(self.state.step, memory))

    def end_update(self) -> None:
        """All parts of an update are applied."""
        self.state.step += 1

    @torch.no_grad()
    def push_part(self, index: int) -> bytes:
        """D = snapshot - theta."""
        part = self.parts[index]
        theta, snapshot = views(self.parameters, part), views(self.snapshot, part)
        return self._compressor.encode({name: snapshot[name] - theta[name] for name in theta}, index, part)

    @torch.no_grad()
    def merge_part(self, index: int, data: bytes, base: bytes | None, weight: float) -> bytes:
        """theta = (1 - alpha) theta + alpha theta_g; snapshot = theta. Returns the part of theta_g.

        `data`: theta_g, or its difference to `base`.
        """
        part = self.parts[index]
        whole = data if base is None else add_parts(base, data, part)
        received, snapshot = decode_part(whole, part), views(self.snapshot, part)
        for name, values in views(self.parameters, part).items():
            snapshot[name].copy_(values.lerp_(received[name], weight))
        return whole

    def dispatch_part(self, index: int, codec: str) -> bytes:
        """theta."""
        return encode_part(self.parameters, self.parts[index], codec)

    @torch.no_grad()
    def difference_part(self, index: int, base: bytes, codec: str) -> tuple[bytes, bytes]:
        """theta - base, encoded, and what whoever has `base` then has.

        What the codec loses is in the next difference, because that is taken to what the receiver really has.
        """
        part = self.parts[index]
        theta, held = views(self.parameters, part), decode_part(base, part)
        delta = {name: encode_tensor(theta[name] - held[name], codec) for name in theta}
        data = _encoder.encode(tuple(TensorSlice(name, offset, delta[name]) for name, offset, _ in part))
        return data, add_parts(base, data, part)

    def save_part(self, index: int) -> bytes:
        """All that must survive a restart, of one part."""
        part = self.parts[index]
        groups = {name: encode_part(tensors, part, "raw") for name, tensors in self._groups().items()}
        residual = {name: encode_tensor(values) for name, values in self._compressor.residual(index).items()}
        return _encoder.encode((groups, residual))

    @torch.no_grad()
    def restore_part(self, index: int, data: bytes) -> None:
        """Undo `save_part`."""
        part = self.parts[index]
        groups, residual = _saved_decoder.decode(data)
        for name, tensors in self._groups().items():
            for key, values in decode_part(groups[name], part).items():
                views(tensors, part)[key].copy_(values)
        self._compressor.load(index, {name: decode_tensor(values) for name, values in residual.items()})

    def _groups(self) -> dict[str, Tensors]:
        groups = {"parameters": self.parameters, **self.state.tensors}
        return {**groups, "snapshot": self.snapshot} if self.snapshot else groups
