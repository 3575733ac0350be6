"""A plan's sites and links as the simulator has them, and what crossed them as its counters tell."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from farflung.apps.plan.plan_file import PlanFile
from farflung.sim.simulation import Simulation
from farflung.sim.topology import Link, Topology
from farflung.world.address import PeerId

Bytes = dict[tuple[str, str], float]
"""From site to site."""


def topology_of(plan: PlanFile, scale: float = 1.0) -> Topology:
    """Links between all sites; `scale`: bytes of a stand-in for a model over those of the model."""
    topology = Topology()
    for site in plan.sites:
        rate = site.bandwidth_mbit * 1e6 / 8 * scale
        topology.link(site.name, site.name, Link(latency_seconds=site.round_trip_ms / 2000, bytes_per_second=rate))
    for index, one in enumerate(plan.site_names):
        for other in plan.site_names[index + 1 :]:
            link = plan.link(one, other)
            shape = Link(latency_seconds=link.one_way_seconds, bytes_per_second=link.bytes_per_second * scale)
            topology.link(one, other, shape)
    return topology


@dataclass(slots=True)
class Nodes:
    """Names of the simulated nodes by site."""

    sites: dict[str, str] = field(default_factory=dict[str, str])

    def bytes_sent(self, simulation: Simulation) -> Bytes:
        """So far, from site to site, those within one too."""
        return self._sent(lambda name: simulation.traffic(name).num_bytes)

    def bytes_of_kinds(self, simulation: Simulation, kinds: Collection[str]) -> Bytes:
        """Of messages of these names alone."""
        return self._sent(
            lambda name: {key: num for key, num in simulation.traffic(name).num_bytes.items() if key[1] in kinds}
        )

    def messages_sent(self, simulation: Simulation) -> Bytes:
        """How many so far, likewise."""
        return self._sent(lambda name: simulation.traffic(name).num_messages)

    def _sent(self, counts_of: Callable[[str], Mapping[tuple[PeerId, str, bool], int]]) -> Bytes:
        sent: Bytes = {}
        for name, site in self.sites.items():
            for (peer, _, was_sent), number in counts_of(name).items():
                if was_sent:
                    way = (site, self.sites[peer])
                    sent[way] = sent.get(way, 0.0) + number
        return sent


def difference(after: Mapping[tuple[str, str], float], before: Mapping[tuple[str, str], float]) -> Bytes:
    """Per way."""
    return {way: num_bytes - before.get(way, 0.0) for way, num_bytes in after.items()}


def scaled(sent: Mapping[tuple[str, str], float], factor: float) -> Bytes:
    """Per way."""
    return {way: num_bytes * factor for way, num_bytes in sent.items()}


def added(*parts: Mapping[tuple[str, str], float]) -> Bytes:
    """Per way."""
    total: Bytes = {}
    for part in parts:
        for way, num_bytes in part.items():
            total[way] = total.get(way, 0.0) + num_bytes
    return total


def between_sites(sent: Mapping[tuple[str, str], float]) -> Bytes:
    """Without what stayed within a site."""
    return {way: num_bytes for way, num_bytes in sent.items() if way[0] != way[1] and num_bytes > 0}
