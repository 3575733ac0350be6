"""A plan's sites, machines and links as a running swarm's records tell them, and what nobody has measured (pure)."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from farflung.apps.dashboard.swarm_view import NO_SITE, Way, site_of, ways
from farflung.apps.machines import MachineInfo
from farflung.apps.plan.plan_file import LinkSettings, SiteSettings
from farflung.apps.plan.words import Sentence, said
from farflung.mesh.records import Record
from farflung.systems.swarm.info import ServerInfo
from farflung.world.address import PeerId

Tables = dict[str, Any]
SAME_SIZE = 0.01
"""Blocks that differ by less in size are equally fast."""
PLACES = ("sites", "machines", "links")
"""Sections of a plan that a swarm tells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a node of the swarm sees in its directory."""

    swarm: str
    view: Mapping[PeerId, Record]
    servers: Mapping[PeerId, ServerInfo]
    machines: Mapping[PeerId, MachineInfo]

    @property
    def site_names(self) -> list[str]:
        """Where servers are, by name."""
        return sorted({site_of(self.view[peer]) for peer in self.servers})


@dataclass(frozen=True, slots=True)
class Measured:
    """Sections of a plan, and what is to be said of them."""

    tables: Tables
    remarks: tuple[Sentence, ...]


def most_served(seen: Seen) -> str:
    """The fingerprint of the model that most servers serve.

    Raises:
        ValueError: nobody serves anything.
    """
    if not seen.servers:
        raise ValueError(f"nobody serves blocks in the swarm {seen.swarm!r}: give a PLAN.toml, without --join")
    counts = Counter(info.model for info in seen.servers.values())
    return min(counts, key=lambda one: (-counts[one], one))


def model_served(seen: Seen) -> Measured:
    """[model]: what most servers serve, as a Llama of the size that they announce.

    Raises:
        ValueError: nobody serves anything, or its size is not told.
    """
    fingerprint = most_served(seen)
    peers = [peer for peer, info in seen.servers.items() if info.model == fingerprint]
    told = next((peer for peer in peers if peer in seen.machines and seen.servers[peer].num_model_blocks), None)
    name = seen.servers[peers[0]].model_name
    if told is None:
        raise ValueError(f"the servers of {name} do not tell how large it is: give --set model.path=FOLDER, or a file")
    machine, layers = seen.machines[told], seen.servers[told].num_model_blocks
    # One matrix may be both ends of this model, and a Llama by its numbers has two: its blocks are to be as large.
    ends = 2 * machine.vocabulary_size * machine.hidden_size
    parameters = max(machine.model_parameters, layers * machine.block_parameters + ends)
    table = {
        "parameters": parameters,
        "layers": layers,
        "hidden_size": machine.hidden_size,
        "vocabulary_size": machine.vocabulary_size,
    }
    return Measured(table, (said("model served", model=name, parameters=parameters / 1e6),))


def places_of(seen: Seen, block_parameters: int, assumed: LinkSettings) -> Measured:
    """[[sites]], [[machines]] and [[links]] for a model whose largest block has so many parameters.

    `assumed`: of links that nobody has measured.

    Raises:
        ValueError: nobody serves anything, so that no machine is known.
    """
    if not seen.servers:
        raise ValueError(
            f"the swarm {seen.swarm!r} has no machine that serves blocks: give a PLAN.toml, without --join"
        )
    found = [way for way in ways(seen.view) if {way.one, way.other} <= set(seen.site_names)]
    within = {way.one: way for way in found if way.one == way.other}
    between = {(way.one, way.other): way for way in found if way.one != way.other}
    pairs = list(itertools.combinations(seen.site_names, 2))
    tables: Tables = {
        "sites": [_site(name, within.get(name)) for name in seen.site_names],
        "machines": [_machine(seen, peer, block_parameters) for peer in by_site(seen)],
        "links": [_link(pair, between.get(pair), assumed) for pair in pairs],
    }
    said_of_ways = (*_unmeasured(pairs, between, assumed), *_unmeasured_within(seen, within))
    own = said("from swarm", swarm=seen.swarm, machines=len(seen.servers), sites=len(seen.site_names))
    return Measured(tables, (own, *_said_of_machines(seen, block_parameters), *said_of_ways))


def by_site(seen: Seen) -> list[PeerId]:
    """The servers in the order of a plan's machines."""
    return sorted(seen.servers, key=lambda peer: (site_of(seen.view[peer]), peer))


def _site(name: str, way: Way | None) -> Tables:
    table: Tables = {"name": name}
    if way is not None and way.bytes_per_second:
        table["bandwidth_mbit"] = way.bytes_per_second * 8 / 1e6
    if way is not None and way.round_trip_seconds is not None:
        table["round_trip_ms"] = way.round_trip_seconds * 1000
    return table


def _link(pair: tuple[str, str], way: Way | None, assumed: LinkSettings) -> Tables:
    rate = way.bytes_per_second if way is not None else None
    seconds = way.round_trip_seconds if way is not None else None
    return {
        "between": list(pair),
        "bandwidth_mbit": rate * 8 / 1e6 if rate else assumed.bandwidth_mbit,
        "round_trip_ms": assumed.round_trip_ms if seconds is None else seconds * 1000,
        "price_per_gb": assumed.price_per_gb,
    }


def _machine(seen: Seen, peer: PeerId, block_parameters: int) -> Tables:
    info, machine = seen.servers[peer], seen.machines.get(peer)
    table: Tables = {"site": site_of(seen.view[peer]), "device": "cpu", "dtype": info.dtype}
    if machine is None:
        return {**table, "blocks_per_second": info.blocks_per_second}
    # What decoding and long forwards wait for grows with the parameters of a block.
    share = machine.block_parameters / block_parameters
    return {
        **table,
        "device": machine.device,
        "memory_gb": machine.memory_bytes / 1e9,
        "blocks_per_second": info.blocks_per_second * share,
        "forward_tokens_per_second": info.forward_tokens_per_second * share,
        "flops": 2 * machine.block_parameters * info.forward_tokens_per_second,
    }


def _said_of_machines(seen: Seen, block_parameters: int) -> Iterator[Sentence]:
    silent = sum(peer not in seen.machines for peer in seen.servers)
    if silent:
        yield said("silent machines", count=silent)
    sizes = [seen.machines[peer].block_parameters for peer in seen.servers if peer in seen.machines]
    others = sum(abs(size / block_parameters - 1) > SAME_SIZE for size in sizes)
    if others:
        yield said("scaled speeds", count=others)
    homeless = sum(site_of(seen.view[peer]) == NO_SITE for peer in seen.servers)
    if homeless:
        yield said("no site", count=homeless)


def _unmeasured(
    pairs: Sequence[tuple[str, str]], between: Mapping[tuple[str, str], Way], assumed: LinkSettings
) -> Iterator[Sentence]:
    rates = [pair for pair in pairs if pair not in between or not between[pair].bytes_per_second]
    trips = [pair for pair in pairs if pair not in between or between[pair].round_trip_seconds is None]
    if rates:
        yield said("assumed bandwidth", links=_listed(rates), value=f"{assumed.bandwidth_mbit:g} Mbit/s")
    if trips:
        yield said("assumed round trip", links=_listed(trips), value=f"{assumed.round_trip_ms:g} ms")


def _unmeasured_within(seen: Seen, within: Mapping[str, Way]) -> Iterator[Sentence]:
    crowded = [name for name, count in Counter(site_of(seen.view[peer]) for peer in seen.servers).items() if count > 1]
    unknown = sorted(name for name in crowded if name not in within or not within[name].bytes_per_second)
    if unknown:
        usual = SiteSettings(name="usual").bandwidth_mbit
        yield said("assumed bandwidth", links=", ".join(unknown), value=f"{usual:g} Mbit/s")


def _listed(pairs: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{one}–{other}" for one, other in pairs)
