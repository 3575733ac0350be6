"""The equations of HALoS on a server's model, part by part: apply an update, push a difference, merge a model.

A part's tensors are flat views of the model's, so that nothing of the model's size is ever made. Every rule works value
by value: parts one after another give what the whole at once would.
"""

import hashlib
from collections.abc import Mapping, Sequence

import msgspec
import torch

from farflung.learn.feedback import ErrorFeedback
from farflung.learn.parameters import Tensors
from farflung.learn.rules import Rule, RuleState
from farflung.wire.parts import Part, TensorSlice, cut_part, part_values, plan_of, slices_of, views
from farflung.wire.tensor import MalformedTensor

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[TensorSlice, ...])
_saved_decoder = msgspec.msgpack.Decoder(dict[str, bytes])


def encode_part(values: Mapping[str, torch.Tensor], part: Part, codec: str = "raw") -> bytes:
    """[length] the values of `part` by name, as slices in bytes of their own."""
    return _encoder.encode(cut_part(values, part, codec))


def decode_part(data: bytes | memoryview, part: Part) -> Tensors:
    """[length] float32 tensors by name, one for each slice of `part`.

    Raises:
        MalformedTensor: these are no slices, not those of `part`, or not finite.
    """
    try:
        slices = _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise MalformedTensor(f"no slices: {error}") from None
    values = part_values(slices, part)
    if not all(bool(tensor.isfinite().all()) for tensor in values.values()):
        raise MalformedTensor("values that are not finite")
    return values


def compress_part(delta: Tensors, owed: Tensors, part: Part, codec: str) -> tuple[bytes, Tensors]:
    """`delta` and what is `owed` from the last one, as slices; and what the codec left out of both, owed now."""
    if codec == "raw" and not owed:
        return encode_part(delta, part), {}
    feedback = ErrorFeedback()
    feedback.load(owed)
    return _encoder.encode(slices_of(feedback.compress(delta, codec), part)), feedback.state()


def add_parts(base: bytes, difference: bytes | memoryview, part: Part) -> bytes:
    """A part whose values are those of two together, float32: the same at both ends to the last bit."""
    total, change = decode_part(base, part), decode_part(difference, part)
    return encode_part({name: total[name].add_(change[name]) for name in total}, part)


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


class ServedModel:
    """A server's model with its rule's memory: all of the model's size that a server keeps in memory."""

    def __init__(self, parameters: Mapping[str, torch.Tensor], rule: Rule, values_per_part: int) -> None:
        """`parameters` (contiguous float32) become the server's own, so that there are never two models in memory."""
        assert all(tensor.dtype == torch.float32 for tensor in parameters.values()), "servers keep float32"
        self.parameters = {name: tensor.detach().contiguous() for name, tensor in parameters.items()}
        self.state = rule.init(self.parameters)
        self.parts = plan_of(self.parameters, values_per_part)
        self._rule = rule

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
    def push_part(self, index: int, snapshot: bytes, owed: bytes | None, codec: str) -> tuple[bytes, bytes]:
        """D = snapshot - theta, and what the codec left out of it and of what was `owed` before."""
        part = self.parts[index]
        theta, merged = views(self.parameters, part), decode_part(snapshot, part)
        before = decode_part(owed, part) if owed is not None else {}
        data, after = compress_part({name: merged[name] - theta[name] for name in theta}, before, part, codec)
        return data, encode_part({name: after.get(name, torch.zeros(length)) for name, _, length in part}, part)

    @torch.no_grad()
    def merge_part(self, index: int, data: bytes, base: bytes | None, weight: float) -> tuple[bytes, bytes]:
        """theta = (1 - alpha) theta + alpha theta_g. Returns theta, the snapshot of the next push, and theta_g.

        `data`: theta_g, or its difference to `base`.
        """
        part = self.parts[index]
        whole = data if base is None else add_parts(base, data, part)
        theta, received = views(self.parameters, part), decode_part(whole, part)
        for name, values in theta.items():
            values.lerp_(received[name], weight)
        return encode_part(theta, part), whole

    def dispatch_part(self, index: int, codec: str) -> bytes:
        """theta."""
        part = self.parts[index]
        return encode_part(views(self.parameters, part), part, codec)

    @torch.no_grad()
    def difference_part(self, index: int, base: bytes, codec: str) -> tuple[bytes, bytes]:
        """theta - base, encoded, and what whoever has `base` then has.

        What the codec loses is in the next difference, because that is taken to what the receiver really has.
        """
        part = self.parts[index]
        theta, held = views(self.parameters, part), decode_part(base, part)
        data = encode_part({name: theta[name] - held[name] for name in theta}, part, codec)
        return data, add_parts(base, data, part)

    def save_part(self, index: int) -> bytes:
        """All in memory that must survive a restart, of one part."""
        part = self.parts[index]
        return _encoder.encode({name: encode_part(views(held, part), part) for name, held in self._groups().items()})

    @torch.no_grad()
    def restore_part(self, index: int, data: bytes) -> None:
        """Undo `save_part`."""
        part = self.parts[index]
        saved = _saved_decoder.decode(data)
        for group, tensors in self._groups().items():
            values = decode_part(saved[group], part)
            for name, target in views(tensors, part).items():
                target.copy_(values[name])

    def _groups(self) -> dict[str, Tensors]:
        return {"parameters": self.parameters, **self.state.tensors}
