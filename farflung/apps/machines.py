"""What kind of machine a block server is, told in its record beside what it serves, for plans of other uses of it."""

import math
from collections.abc import Mapping

import msgspec
import torch

from farflung.apps.announced import SERVING_ROLES
from farflung.mesh.records import Record
from farflung.model.budget import block_parameters
from farflung.model.cut import build_skeleton
from farflung.model.source import ModelSource
from farflung.world.address import PeerId

MACHINE_TOPIC = "machine"
DEVICE_LENGTH_MAX = 64


class MachineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One machine, and the size of the model with whose blocks its speed was measured.

    A later version may tell more: fields that are not known are passed over.
    """

    device: str
    """Such as "NVIDIA A100-SXM4-80GB" or "cpu"."""
    memory_bytes: int
    """Free on its device before it loaded anything."""
    block_parameters: int
    """Of the model's largest block."""
    model_parameters: int
    hidden_size: int
    vocabulary_size: int

    def __post_init__(self) -> None:
        if not 0 < len(self.device) <= DEVICE_LENGTH_MAX or not self.device.isprintable():
            raise ValueError("A machine announced a device without a readable name.")
        numbers = (self.memory_bytes, self.block_parameters, self.model_parameters, self.hidden_size)
        if not all(0 < number < math.inf for number in (*numbers, self.vocabulary_size)):
            raise ValueError("A machine announced a size that is not a positive number.")


def machine_info(source: ModelSource, device: torch.device, memory_bytes: int) -> MachineInfo:
    """What this machine tells when it serves blocks of `source`."""
    skeleton = build_skeleton(source, torch.float32)
    return MachineInfo(
        device=device_name(device)[:DEVICE_LENGTH_MAX],
        memory_bytes=memory_bytes,
        block_parameters=block_parameters(skeleton),
        model_parameters=sum(one.numel() for one in skeleton.model.parameters()),
        hidden_size=source.hidden_size,
        vocabulary_size=source.config.vocab_size,
    )


def device_name(device: torch.device) -> str:
    """As its maker calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def announced_machines(view: Mapping[PeerId, Record]) -> dict[PeerId, MachineInfo]:
    """What block servers tell of their machines, in order of their ids; nonsense is left out."""
    found: dict[PeerId, MachineInfo] = {}
    for peer in sorted(view):
        content = view[peer].topics.get(MACHINE_TOPIC)
        if content is None or view[peer].role not in SERVING_ROLES:
            continue
        try:
            found[peer] = msgspec.msgpack.decode(content, type=MachineInfo)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
    return found
