"""Where a site takes part: its swarm, its run, and the addresses of its nodes."""

from collections.abc import Callable
from dataclasses import dataclass

from farflung.apps.tickets import find_ticket
from farflung.apps.wiring import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Whereabouts:
    """Settings of `LowCommunication` that say with whom and over which addresses; see there."""

    swarm: str | None
    new_swarm: str | None
    run: str
    region: str
    host: str | None
    port: int
    advertise: tuple[str, ...]
    num_lanes: int | None
    on_ticket: Callable[[str], None]
    wait_seconds_max: float

    @property
    def ticket(self) -> str | None:
        """Of the swarm to join; None for a founder.

        Raises:
            ValueError: there is none, or it is damaged or expired.
        """
        return None if self.new_swarm is not None else find_ticket(self.swarm)

    def place(self, number: int) -> Place:
        """Of the site's node of that number: each has a port of its own, one above the other if they are stated.

        The first node of every site that can be called keeps the directory, so that a run outlives its founder.
        """
        if self.host is None:
            return Place(is_dial_only=True, site=self.region)
        return Place(
            host=self.host,
            port=self.port + number if self.port else 0,
            advertise=tuple(_above(place, number) for place in self.advertise),
            is_rendezvous=number == 0,
            site=self.region,
        )


def _above(place: str, number: int) -> str:
    name, _, port = place.rpartition(":")
    return f"{name}:{int(port) + number}"
