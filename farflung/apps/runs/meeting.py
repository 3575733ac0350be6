"""Where a run's lead is reached: kept in its folder, so that whoever has its ticket finds it after a resumption."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from farflung.apps.wiring import Place, SwarmNode, join
from farflung.runtime.store import write_durably

PLACE_FILE = "place.json"


class KeptPlace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the lead listened."""

    host: str
    port: int
    advertise: tuple[str, ...]


async def open_lead(place: Place, swarm: str, tell: Callable[[str], object]) -> tuple[SwarmNode, Place]:
    """A node that leads a run, and where it listens: where it did before, unless `place` says otherwise.

    `tell` gets a sentence if that is not possible.

    Raises:
        ValueError: a port or a home in use, or what was kept there is damaged.
    """
    assert place.home is not None
    path = place.home / PLACE_FILE
    before = _kept(path) if place == Place(home=place.home, is_rendezvous=place.is_rendezvous) else None
    if before is not None:
        place = replace(place, host=before.host, port=before.port, advertise=before.advertise)
    try:
        node = await join(place, new_swarm=swarm)
    except ValueError as error:
        if before is None:
            raise
        tell(f"{error}. This run goes on at another port: machines that join it need its new ticket.")
        place = replace(place, port=0, advertise=())
        node = await join(place, new_swarm=swarm)
    kept = KeptPlace(place.host, place.port or _port_of(node.node.endpoints, place.advertise), tuple(place.advertise))
    write_durably(path, msgspec.json.encode(kept))
    return node, place


def _port_of(endpoints: Sequence[str], advertise: Sequence[str]) -> int:
    """The port listened at; 0 where only the one that others see is known."""
    return 0 if advertise else int(endpoints[0].rpartition(":")[2])


def _kept(path: Path) -> KeptPlace | None:
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=KeptPlace)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, or give --port") from None
