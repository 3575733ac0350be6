"""How the sites of a run find each other in the swarm's directory, and agree on who coordinates.

Every node of a site offers one lane. The site that began first leads: it hosts the coordinator of each lane. Whoever
comes later follows the lead that those present name; when the lead is gone, they agree anew.
"""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from farflung.apps.wiring import LOOK_SECONDS, SwarmNode
from farflung.systems.desync.messages import COORDINATOR
from farflung.wire.certificate import TicketRole
from farflung.world.address import Address, PeerId
from farflung.world.errors import FarflungError

TOPIC = "low-communication"
SETTLE_SECONDS = 0.5
"""After enough sites are there, how long the first of them looks for others that claim to lead."""
MEMBER_ROLES = (TicketRole.WORKER, TicketRole.SERVER, TicketRole.ADMIN)


class NobodyThere(FarflungError):
    """Too few sites of the run are in the swarm."""


class Offer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a node of a site announces."""

    run: str
    site: PeerId
    """The site's first node, which is its name here."""
    lane: int
    model: str
    """Digest of names and shapes of parameters and moments."""
    num_values: int
    num_tensors: int
    policy: str
    num_lanes: int
    """What the site leads with, or follows."""
    started_at: float
    """Wall-clock second at which the site came."""
    lead: PeerId = PeerId("")
    """Site that it follows; empty: not agreed yet."""
    is_coordinating: bool = False


class Agreed(NamedTuple):
    """What the sites of a run agree on."""

    lead: PeerId
    num_lanes: int


def offers(node: SwarmNode, run: str, lane: int) -> list[tuple[PeerId, Offer]]:
    """What the run's nodes of a lane announce now, the earliest site first; nonsense is left out."""
    found: list[tuple[PeerId, Offer]] = []
    for peer, content in node.member.topic(TOPIC).items():
        try:
            offer = msgspec.json.decode(content, type=Offer)
        except msgspec.MsgspecError:
            continue
        if (offer.run, offer.lane) == (run, lane) and node.member.view[peer].role in MEMBER_ROLES:
            found.append((peer, offer))
    return sorted(found, key=lambda one: (one[1].started_at, one[0]))


def announce(node: SwarmNode, offer: Offer) -> None:
    """Offer a lane, or say something new about it."""
    node.publish(TOPIC, msgspec.json.encode(offer))


def why_misfit(own: Offer, other: Offer) -> str | None:
    """Why two sites cannot train together, as a sentence for the later one; None if they can."""
    if other.model != own.model:
        sizes = [f"{one.num_values:,} values in {one.num_tensors} tensors" for one in (other, own)]
        differ = f"{sizes[0]} there, {sizes[1]} here" if sizes[0] != sizes[1] else "names or shapes differ"
        return (
            f"run {own.run!r} trains another model or optimizer ({differ}): start it from the same code and "
            "configuration, or give this run another name"
        )
    if other.policy != own.policy:
        return f"run {own.run!r} has the policy {other.policy}, not {own.policy}: all its sites need the same"
    return None


def fitting(own: Offer, present: Sequence[Offer]) -> list[Offer]:
    """The sites that one can train with.

    Raises:
        ValueError: one that was there before does not fit; those that came later are told so themselves.
    """
    for other in present:
        reason = why_misfit(own, other)
        if reason is not None and (other.started_at, other.site) < (own.started_at, own.site):
            raise ValueError(reason)
    return [other for other in present if why_misfit(own, other) is None]


async def agree(node: SwarmNode, own: Offer, sites_min: int, seconds_max: float) -> Agreed:
    """Announce this site, wait until enough are there, and follow or become the lead. Runs on a site's first node.

    Raises:
        ValueError: the run trains something else.
        NobodyThere: too few sites in that time.
    """
    now = node.world.clock.now
    announce(node, own)
    deadline, lead_at = now() + seconds_max, 0.0
    while True:
        present = fitting(own, [offer for _, offer in offers(node, own.run, own.lane)])
        by_site = {offer.site: offer for offer in present}
        if len(present) >= sites_min and own.site in by_site:
            named = [offer.lead for offer in present if offer.lead in by_site and offer.lead != own.site]
            lead_at = lead_at or now() + SETTLE_SECONDS
            if named or (present[0].site == own.site and now() >= lead_at):
                lead = by_site[named[0]] if named else own
                agreed = Agreed(lead.site, lead.num_lanes)
                announce(node, msgspec.structs.replace(own, lead=agreed.lead, num_lanes=agreed.num_lanes))
                return agreed
        if now() >= deadline:
            raise NobodyThere(
                f"after {seconds_max:g} s {len(present)} of at least {sites_min} sites train run {own.run!r} in this "
                "swarm: start it at the others too, with the same ticket, or lower sites_min"
            )
        await asyncio.sleep(LOOK_SECONDS)


async def find_coordinator(node: SwarmNode, own: Offer, seconds_max: float) -> Address:
    """Where the lead coordinates this lane.

    Raises:
        NobodyThere: it is gone, or does not begin in time.
    """
    deadline = node.world.clock.now() + seconds_max
    while node.world.clock.now() < deadline:
        for peer, offer in offers(node, own.run, own.lane):
            if offer.site == own.lead and offer.is_coordinating:
                return Address(peer, COORDINATOR)
        await asyncio.sleep(LOOK_SECONDS)
    raise NobodyThere(f"the site that leads run {own.run!r} did not begin within {seconds_max:g} s")


def why_over(node: SwarmNode, own: Offer, sites_min: int) -> str | None:
    """Why a round of this lane will not come about; None as long as it may."""
    sites = [offer.site for _, offer in offers(node, own.run, own.lane)]
    if own.lead not in sites:
        return "the site that led is gone"
    if len(sites) < sites_min:
        return f"{len(sites)} of at least {sites_min} sites are left"
    return None
