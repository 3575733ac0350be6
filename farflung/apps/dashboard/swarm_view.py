"""What the page *Swarm* shows, computed from the directory's records: sites, ways between them, nodes, and coverage."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from farflung.apps.status import SHORT_PEER, coverage, ranges
from farflung.mesh.reach import published
from farflung.mesh.records import Record
from farflung.systems.swarm.info import ServerInfo, ServerState
from farflung.world.address import PeerId

NO_SITE = "no site given"


@dataclass(frozen=True, slots=True)
class Served:
    """What a node serves, and how busy it is."""

    model: str
    blocks: str
    state: str
    blocks_per_second: float
    queue_length: int
    work: str
    """Shares of what its device has computed, by kind of work."""
    num_sessions: int
    cache_tokens_left: int
    cache_tokens_max: int
    dtype: str


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node."""

    peer: PeerId
    site: str
    role: str
    is_rendezvous: bool
    is_self: bool
    """It is this dashboard."""
    round_trip_seconds: float | None
    """From this dashboard."""
    served: Served | None

    @property
    def name(self) -> str:
        """Short, for people."""
        return self.peer[:SHORT_PEER]

    @property
    def roles(self) -> str:
        """What it does here, in words."""
        parts = [
            "this dashboard" if self.is_self else "",
            self.role,
            "rendezvous" if self.is_rendezvous else "",
        ]
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class Way:
    """Between two sites, or within one: medians over the pairs of nodes that have measured."""

    one: str
    other: str
    round_trip_seconds: float | None
    bytes_per_second: float | None
    num_measured: int


@dataclass(frozen=True, slots=True)
class Break:
    """What nobody serves any more if one node is lost."""

    peer: PeerId
    site: str
    blocks: str
    """Ranges such as 0:2, 5:6."""


@dataclass(frozen=True, slots=True)
class ModelView:
    """How well the blocks of one model are covered."""

    name: str
    fingerprint: str
    counts: tuple[int, ...]
    """Servers that take sessions, of each block."""
    missing: str
    """Blocks that nobody serves, as ranges; empty: none."""
    breaks: tuple[Break, ...]


@dataclass(frozen=True, slots=True)
class SwarmPicture:
    """The whole page."""

    swarm: str
    nodes: tuple[NodeView, ...]
    """By site, then by peer."""
    ways: tuple[Way, ...]
    models: tuple[ModelView, ...]

    @property
    def sites(self) -> dict[str, tuple[NodeView, ...]]:
        """Nodes by site, in order of their names."""
        names = dict.fromkeys(node.site for node in self.nodes)
        return {name: tuple(node for node in self.nodes if node.site == name) for name in names}


def picture(
    swarm: str,
    own: PeerId,
    view: Mapping[PeerId, Record],
    servers: Mapping[PeerId, ServerInfo],
    round_trips: Mapping[PeerId, float],
    seen_blocks: Mapping[str, tuple[str, int]],
) -> SwarmPicture:
    """The page as of now.

    `servers`: whose announcements count. `round_trips`: from this node, in seconds. `seen_blocks`: name and number of
    blocks of models seen before, by fingerprint, so that one that lost all its servers is still shown.
    """
    nodes = [_node(peer, own, view[peer], servers.get(peer), round_trips.get(peer)) for peer in sorted(view)]
    nodes.sort(key=lambda node: (node.site == NO_SITE, node.site))
    return SwarmPicture(swarm, tuple(nodes), tuple(ways(view)), tuple(models(view, servers, seen_blocks)))


def _node(peer: PeerId, own: PeerId, record: Record, info: ServerInfo | None, round_trip: float | None) -> NodeView:
    return NodeView(
        peer=peer,
        site=site_of(record),
        role=str(record.role),
        is_rendezvous=record.is_rendezvous,
        is_self=peer == own,
        round_trip_seconds=two_digits(round_trip),
        served=_served(info) if info is not None else None,
    )


def two_digits(value: float | None) -> float | None:
    """Rounded, so that noise draws nothing anew."""
    return None if value is None else float(f"{value:.1e}")


def site_of(record: Record) -> str:
    """Where a node says that it is."""
    return record.site or NO_SITE


def _served(info: ServerInfo) -> Served:
    moving = f" to {info.moving_to}" if info.moving_to is not None else ""
    return Served(
        model=info.model_name,
        blocks=str(info.blocks),
        state=info.state.value + moving,
        blocks_per_second=info.blocks_per_second,
        queue_length=info.queue_length,
        work=str(info.work),
        num_sessions=info.num_sessions,
        cache_tokens_left=info.cache_tokens_left,
        cache_tokens_max=info.cache_tokens_max,
        dtype=info.dtype,
    )


def ways(view: Mapping[PeerId, Record]) -> list[Way]:
    """What nodes have measured to each other, by pair of sites; pairs that nobody has measured are left out."""
    round_trips: dict[tuple[str, str], list[float]] = {}
    rates: dict[tuple[str, str], list[float]] = {}
    for peer in sorted(view):
        for other, distance in sorted(published(view[peer]).items()):
            if other not in view:
                continue
            first, second = sorted((site_of(view[peer]), site_of(view[other])))
            for values, value in (
                (round_trips, distance.round_trip_seconds),
                (rates, distance.bytes_per_second),
            ):
                if value is not None:
                    values.setdefault((first, second), []).append(value)
    found = [
        Way(
            *pair,
            two_digits(_median(round_trips.get(pair))),
            two_digits(_median(rates.get(pair))),
            len(round_trips.get(pair, ())),
        )
        for pair in sorted({*round_trips, *rates})
    ]
    return sorted(found, key=lambda way: way.one == way.other)


def _median(values: list[float] | None) -> float | None:
    return statistics.median(values) if values else None


def models(
    view: Mapping[PeerId, Record],
    servers: Mapping[PeerId, ServerInfo],
    seen_blocks: Mapping[str, tuple[str, int]],
) -> list[ModelView]:
    """Coverage of every model that is, or was, served, by name."""
    now = {info.model: info.model_name for info in servers.values()}
    names = {fingerprint: name for fingerprint, (name, _) in seen_blocks.items()} | now
    found: list[ModelView] = []
    for fingerprint, name in names.items():
        infos = {peer: info for peer, info in servers.items() if info.model == fingerprint}
        counts = coverage(list(infos.values()))
        num_blocks = seen_blocks.get(fingerprint, ("", 0))[1]
        counts += [0] * (num_blocks - len(counts))
        missing = ranges([block for block, count in enumerate(counts) if count == 0])
        lost = {peer: blocks for peer, blocks in breaks(infos).items() if blocks}
        broken = tuple(Break(peer, site_of(view[peer]), ranges(blocks)) for peer, blocks in lost.items())
        found.append(ModelView(name, fingerprint, tuple(counts), missing, broken))
    return sorted(found, key=lambda model: (model.name, model.fingerprint))


def breaks(servers: Mapping[PeerId, ServerInfo]) -> dict[PeerId, list[int]]:
    """Blocks of one model that each of its servers alone holds for sessions: they are lost with it."""
    counts = coverage(list(servers.values()))
    return {
        peer: [block for block in range(*servers[peer].blocks) if counts[block] == 1]
        for peer in sorted(servers)
        if servers[peer].state is ServerState.ONLINE
    }


def seen(before: Mapping[str, tuple[str, int]], servers: Mapping[PeerId, ServerInfo]) -> dict[str, tuple[str, int]]:
    """Name and number of blocks of every model, by fingerprint, after these servers too."""
    found = dict(before)
    for info in servers.values():
        known = found.get(info.model, ("", 0))[1]
        found[info.model] = (info.model_name, max(known, info.blocks.last, info.num_model_blocks))
    return found
