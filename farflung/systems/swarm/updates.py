"""How a block server that belongs to somebody gets other weights: in parts, then at once, between two computations."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from farflung.model.span import Span
from farflung.systems.swarm.messages import Install, Installed
from farflung.wire.tensor import MalformedTensor, decode_tensor
from farflung.world.address import Address, PeerId
from farflung.world.doors import Failed
from farflung.world.effects import Effect, Note, Run, Send

BROKEN = ""
"""The name of weights of which nobody knows what they are."""


@dataclass(frozen=True, slots=True, eq=False)
class InstallJob:
    """All parts of a version are here and are being put in place."""

    source: Address
    last: Install


class Updates:
    """What has come so far of the next weights, and who may send any."""

    def __init__(self, owner: PeerId | None) -> None:
        """`owner`: the only peer whose weights are taken; None: nobody's."""
        self._owner = owner
        self._model = BROKEN
        self._parts: dict[int, Mapping[str, torch.Tensor]] = {}

    def take(self, source: Address, message: Install, span: Span) -> Run | Effect:
        """Keep a part; a `Run` when it was the last one that was missing, else the answer."""
        if source.peer != self._owner:
            return Send(source, answer(message, "this server takes weights from nobody but its owner"))
        if message.model != self._model:
            self._model, self._parts = message.model, {}
        try:
            part = {name: decode_tensor(wire) for name, wire in message.tensors.items()}
        except MalformedTensor as error:
            return Send(source, answer(message, str(error)))
        misfit = span.misfit(part)
        if misfit is not None:
            return Send(source, answer(message, misfit))
        self._parts[message.part] = part
        if len(self._parts) < message.num_parts:
            return Send(source, answer(message))
        tensors = {name: tensor for number in sorted(self._parts) for name, tensor in self._parts[number].items()}
        self._parts = {}
        return Run(InstallJob(source, message), span.install, (tensors,), 0.0)


def answer(message: Install, reason: str = "") -> Installed:
    """To a part; without a reason it is here, and with the last one the weights are in place."""
    return Installed(model=message.model, part=message.part, reason=reason)


def finished(job: InstallJob, result: object) -> list[Effect]:
    """What is said once the weights are in place, or failed to be."""
    reason = f"the weights could not be put in place: {result.error}" if isinstance(result, Failed) else ""
    return [Note(reason or f"computes with weights {job.last.model[:12]}"), Send(job.source, answer(job.last, reason))]
