"""From who is there and what is due to sections and parts: the same on every member (pure)."""

import functools
import itertools
from collections.abc import Mapping, Sequence

from farflung.learn.codecs import second_moment_codec
from farflung.systems.desync.cadence import GRADIENTS, SITE_PARAMETERS, is_parameters
from farflung.systems.desync.config import DesyncConfig
from farflung.systems.desync.exchange import Section
from farflung.systems.desync.messages import Seat
from farflung.systems.desync.routes import (
    Part,
    Tree,
    best_ring,
    cut,
    owner_shares,
    ring_trees,
    star_trees,
    two_level_trees,
)

SQUARES = ("second_moment",)
"""Moments that are means of squares."""


def order_seats(seats: Sequence[Seat], config: DesyncConfig) -> tuple[Seat, ...]:
    """Seats in ring order: the best ring of sites, the members of a site next to each other by name."""
    by_site: dict[str, list[Seat]] = {}
    for seat in sorted(seats, key=lambda seat: (seat.site, seat.address)):
        by_site.setdefault(seat.site, []).append(seat)
    return tuple(itertools.chain(*(by_site[site] for site in best_ring(list(by_site), config.bandwidth))))


def sections_of(lengths: Mapping[str, int], due: Sequence[str], config: DesyncConfig) -> list[Section]:
    """One section for each state that is due; `lengths` in values by its name."""
    sections: list[Section] = []
    first = 0
    for name in due:
        last = first + lengths[name]
        if name == GRADIENTS or is_parameters(name):
            section = Section(name, first, last, config.codec, config.site_codec, _feedback_decay(config))
        elif name == SITE_PARAMETERS:
            section = Section(name, first, last, config.site_codec, config.site_codec)
        else:
            codec = second_moment_codec(config.moment_codec) if name in SQUARES else config.moment_codec
            section = Section(name, first, last, codec, codec)
        sections.append(section)
        first = last
    return sections


def _feedback_decay(config: DesyncConfig) -> float:
    return config.feedback_decay if config.keeps_residual else 0.0


def plan_parts(seats: Sequence[Seat], sections: Sequence[Section], config: DesyncConfig) -> list[Part]:
    """All parts of an exchange among `seats` (in ring order)."""
    by_site = itertools.groupby(range(len(seats)), key=lambda seat: seats[seat].site)
    groups = tuple(tuple(group) for _, group in by_site)
    sites = [seats[group[0]].site for group in groups]
    owned = tuple(owner_shares(sites, config.bandwidth)) if config.topology == "star" else ()
    everyone, shares = _trees(groups, config.topology, owned)
    parts: list[Part] = []
    for number, section in enumerate(sections):
        is_moment = not (section.name in (GRADIENTS, SITE_PARAMETERS) or is_parameters(section.name))
        is_local = section.name == SITE_PARAMETERS or (config.are_moments_local and is_moment)
        length = section.last - section.first
        if is_local:
            for group in groups:
                parts += cut(section.first, length, number, _ring(group), config.part_values_max)
        else:
            parts += cut(section.first, length, number, everyone, config.part_values_max, shares)
    return parts


# Rounds of one run have the same members nearly always, and so the same trees.


@functools.lru_cache(maxsize=256)
def _ring(group: tuple[int, ...]) -> tuple[Tree, ...]:
    return tuple(ring_trees(group))


@functools.lru_cache(maxsize=64)
def _trees(
    groups: tuple[tuple[int, ...], ...], topology: str, owned: tuple[float, ...]
) -> tuple[tuple[Tree, ...], tuple[float, ...] | None]:
    """Trees over all seats (by site), and their shares if those are not equal; `owned`: the sites' shares in a star."""
    match topology:
        case "ring":
            return tuple(ring_trees(range(sum(map(len, groups))))), None
        case "star":
            trees, shares = star_trees(groups, owned)
            return tuple(trees), tuple(shares)
        case _:
            return tuple(two_level_trees(groups)), None
