"""From who is there and what is due to sections and parts: the same on every member (pure)."""

import itertools
from collections.abc import Mapping, Sequence

from farflung.learn.feedback import second_moment_codec
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
    groups = [list(group) for _, group in itertools.groupby(range(len(seats)), key=lambda seat: seats[seat].site)]
    everyone, shares = _trees(seats, groups, config)
    parts: list[Part] = []
    for number, section in enumerate(sections):
        is_moment = not (section.name in (GRADIENTS, SITE_PARAMETERS) or is_parameters(section.name))
        is_local = section.name == SITE_PARAMETERS or (config.are_moments_local and is_moment)
        length = section.last - section.first
        if is_local:
            for group in groups:
                parts += cut(section.first, length, number, ring_trees(group), config.part_values_max)
        else:
            parts += cut(section.first, length, number, everyone, config.part_values_max, shares)
    return parts


def _trees(
    seats: Sequence[Seat], groups: list[list[int]], config: DesyncConfig
) -> tuple[list[Tree], list[float] | None]:
    """Trees over all seats, and their shares if those are not equal."""
    match config.topology:
        case "ring":
            return ring_trees(range(len(seats))), None
        case "star":
            sites = [seats[group[0]].site for group in groups]
            return star_trees(groups, owner_shares(sites, config.bandwidth))
        case _:
            return two_level_trees(groups), None
