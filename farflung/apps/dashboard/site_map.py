"""The picture of a swarm: sites as islands, their nodes as points, and the ways between them with what they measure."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from farflung.apps.dashboard.style import COLOURS
from farflung.apps.dashboard.swarm_view import NodeView, Way
from farflung.apps.dashboard.words import way_text

Point = tuple[float, float]
ISLAND_RADIUS, NODE_RADIUS, POINT_RADIUS = 40.0, 26.0, 6.0
SITE_SPACING = 200.0
"""Along the circle on which sites lie."""
MARGIN_WIDTH, MARGIN_HEIGHT = 110.0, 66.0
CHARACTER_WIDTH = 6.2
SCALE_MAX = 1.6
"""Of a picture of few sites, whose words would else be larger than all others."""


def site_map(sites: Mapping[str, Sequence[NodeView]], ways: Sequence[Way]) -> str:
    """An SVG element."""
    centres = centres_of(list(sites))
    width = 2 * (max((abs(x) for x, _ in centres.values()), default=0.0) + MARGIN_WIDTH)
    height = 2 * (max((abs(y) for _, y in centres.values()), default=0.0) + MARGIN_HEIGHT)
    within = {way.one: way for way in ways if way.one == way.other}
    parts = [_line(centres[way.one], centres[way.other]) for way in ways if way.one != way.other]
    for index, (site, nodes) in enumerate(sites.items()):
        parts += _island(site, nodes, centres[site], COLOURS[index % len(COLOURS)], within.get(site))
    parts += [_label(centres[way.one], centres[way.other], way) for way in ways if way.one != way.other]
    box = f"{-width / 2:.0f} {-height / 2:.0f} {width:.0f} {height:.0f}"
    size = f"max-width: {SCALE_MAX * width:.0f}px"
    label = 'role="img" aria-label="sites and ways"'
    return f'<svg class="map" viewBox="{box}" style="{size}" {label}>{"".join(parts)}</svg>'


def centres_of(sites: Sequence[str]) -> dict[str, Point]:
    """Sites on a circle, the first on the left; a single one in the middle."""
    radius = SITE_SPACING * len(sites) / (2 * math.pi) if len(sites) > 2 else SITE_SPACING / 2 * (len(sites) - 1)
    return {site: _on_circle((0.0, 0.0), radius, index, len(sites), math.pi) for index, site in enumerate(sites)}


def _on_circle(centre: Point, radius: float, index: int, number: int, first: float) -> Point:
    angle = first + 2 * math.pi * index / number
    return round(centre[0] + radius * math.cos(angle), 1), round(centre[1] + radius * math.sin(angle), 1)


def _island(site: str, nodes: Sequence[NodeView], centre: Point, colour: str, within: Way | None) -> list[str]:
    x, y = centre
    parts = [f'<circle cx="{x}" cy="{y}" r="{ISLAND_RADIUS}" fill="{colour}" opacity="0.18"/>']
    for index, node in enumerate(nodes):
        left, top = _on_circle(centre, NODE_RADIUS if len(nodes) > 1 else 0.0, index, len(nodes), -math.pi / 2)
        tip = f"<title>{escape(node.name)}: {escape(node.roles)}</title>"
        parts.append(f'<circle cx="{left}" cy="{top}" r="{POINT_RADIUS}" fill="{colour}">{tip}</circle>')
    parts.append(f'<text x="{x}" y="{y - ISLAND_RADIUS - 6}" font-weight="600">{escape(site)}</text>')
    if within is not None:
        inside = way_text(within.round_trip_seconds, within.bytes_per_second)
        parts.append(f'<text x="{x}" y="{y + ISLAND_RADIUS + 14}">{inside}</text>')
    return parts


def _line(one: Point, other: Point) -> str:
    """From the shore of one island to that of the other."""
    length = math.dist(one, other)
    shore = ISLAND_RADIUS / length
    (x1, y1), (x2, y2) = _between(one, other, shore), _between(one, other, 1 - shore)
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _label(one: Point, other: Point, way: Way) -> str:
    text = way_text(way.round_trip_seconds, way.bytes_per_second)
    x, y = _between(one, other, 0.5)
    width = CHARACTER_WIDTH * len(text)
    back = f'<rect class="backed" x="{x - width / 2:.1f}" y="{y - 9:.1f}" width="{width:.1f}" height="16"/>'
    return f'{back}<text x="{x:.1f}" y="{y + 3:.1f}">{text}</text>'


def _between(one: Point, other: Point, share: float) -> Point:
    return one[0] + share * (other[0] - one[0]), one[1] + share * (other[1] - one[1])
