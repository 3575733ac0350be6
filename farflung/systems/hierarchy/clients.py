"""What a server keeps in memory about each client: where it is, what it sends, what it is being sent."""

import re
from dataclasses import dataclass, field

from farflung.systems.hierarchy.durable import update_key
from farflung.systems.hierarchy.flow import Inflow, Outflow
from farflung.systems.hierarchy.merge import ServedModel, decode_part, digest
from farflung.systems.hierarchy.messages import Join, ModelHeader, RunIdentity, UpdateHeader, UpdatePart
from farflung.wire.tensor import MalformedTensor
from farflung.world.address import Address

NAME = re.compile(r"[A-Za-z0-9._-]{1,60}")
CURSOR_KEYS_MAX = 1024


@dataclass(slots=True)
class Arriving:
    """An update of which some parts are here."""

    sequence: int
    header: UpdateHeader
    inflow: Inflow


@dataclass(slots=True)
class Leaving:
    """A model on its way to the client."""

    dispatch: int
    header: ModelHeader
    outflow: Outflow
    resident: dict[int, bytes] = field(default_factory=dict[int, bytes])
    """Parts that have not arrived there; empty if they lie on disk."""


@dataclass(slots=True)
class Session:
    """One client under its present lease, since the server started."""

    address: Address
    lost_at: float | None = None
    """Since when it cannot be reached."""
    arriving: Arriving | None = None
    leaving: Leaving | None = None
    is_preparing: bool = False
    """A model for it is waited for or being encoded."""
    is_on_disk: bool | None = None
    """Whether models for it wait on disk: decided with the first one, for good."""
    reference: int = 0
    """Number of the newest model that was encoded for it, which `held` is; 0: none is known."""
    held: dict[int, bytes] = field(default_factory=dict[int, bytes])
    """Parts of that model as the client has them, where models travel as differences and are small."""

    def arriving_keys(self, name: str, lease: int) -> list[str]:
        """Where the parts lie of an update that is not whole."""
        if self.arriving is None:
            return []
        sequence, inflow = self.arriving.sequence, self.arriving.inflow
        return [update_key(name, lease, sequence, index) for index in range(inflow.num_parts) if inflow.has(index)]

    def heard(self, source: Address) -> None:
        """A message came from it."""
        self.address, self.lost_at = source, None

    def is_lapsed(self, now: float, lease_seconds: float) -> bool:
        """Whether it has been away for so long that others may have what it held."""
        return self.lost_at is not None and now - self.lost_at > lease_seconds


def difference(join: Join, own: RunIdentity) -> str | None:
    """Why a client cannot take part in this run, or None if it can."""
    if not NAME.fullmatch(join.name):
        return "a name has 1 to 60 letters, digits, points, dashes and underscores"
    if join.run.code != own.code:
        return f"this run is on version {own.code}, not {join.run.code[:40]}: install the same on every machine"
    if join.run.layout != own.layout:
        return "this run trains a model with other parameters: start the worker from the run's own model"
    if join.run.config != own.config:
        return "this run has other settings: start the worker with the run's own file"
    return None


def is_sound(header: UpdateHeader, num_parts: int) -> bool:
    """Whether an update's header is one that an honest client of a model with so many parts sends."""
    return (
        header.num_parts == num_parts
        and header.num_steps >= 1
        and header.num_tokens >= 0
        and header.base_version >= 0
        and header.base_dispatch >= 0
        and 0 <= header.speed < float("inf")
        and abs(header.loss) < float("inf")
        and len(header.cursor) <= CURSOR_KEYS_MAX
    )


def update_problem(part: UpdatePart, model: ServedModel) -> str | None:
    """Why a part of an update cannot be applied to `model`, or None if it can."""
    if not is_sound(part.header, model.num_parts) or not 0 <= part.index < part.header.num_parts:
        return "its header is not one of this run"
    if digest(part.slices) != part.digest:
        return "its bytes are not those that were sent"
    try:
        decode_part(part.slices, model.parts[part.index])
    except MalformedTensor as error:
        return str(error)
    return None
