"""The plot at the end: loss over time for each region and bytes per link, as an SVG file and in the terminal."""

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from farflung.apps.runs.history import History

COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5")
TERMINAL_COLOURS = ("blue", "yellow", "red", "cyan", "green", "magenta")
WIDTH, HEIGHT = 760, 300
LEFT, RIGHT, TOP, BOTTOM = 70, 160, 40, 45
BAR_HEIGHT = 26
BRAILLE_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of the two dots in each of the four rows of one braille character."""

Series = list[tuple[float, float]]


def smooth(points: Series, num_points_max: int = 200) -> Series:
    """At most so many points, each the mean of its neighbours in time."""
    size = max(1, math.ceil(len(points) / num_points_max))
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def byte_text(num_bytes: float) -> str:
    """`1.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def series_of(history: History) -> dict[str, Series]:
    """Smoothed (seconds, loss) by region, in order of their names."""
    regions = sorted({point.region for point in history.points})
    found = {region: smooth(history.losses(region)) for region in regions}
    return {region: series for region, series in found.items() if series}


def link_rows(history: History) -> list[tuple[str, int]]:
    """What each link carried in each direction; what stayed within a region comes last."""
    rows = sorted(history.link_bytes.items(), key=lambda item: (item[0][0] == item[0][1], item[0]))
    return [(one if one == other else f"{one} → {other}", count) for (one, other), count in rows]


def svg(history: History, title: str, time_name: str) -> str:
    """The whole picture as the text of an SVG file."""
    rows = link_rows(history)
    height = HEIGHT + 60 + BAR_HEIGHT * len(rows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="15">{escape(title)}</text>',
        *_loss_panel(series_of(history), time_name),
        f'<text x="{LEFT}" y="{HEIGHT + 30}" font-size="13">bytes sent per link</text>',
        *_byte_panel(rows, HEIGHT + 40),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _loss_panel(series: dict[str, Series], time_name: str) -> list[str]:
    bounds = _bounds(series)
    if bounds is None:
        return [f'<text x="{LEFT}" y="{TOP + 20}">no loss was reported</text>']
    x_max, low, high = bounds

    def place(x: float, y: float) -> tuple[float, float]:
        across, down = x / x_max, (high - y) / (high - low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), TOP + down * (HEIGHT - TOP - BOTTOM)

    parts: list[str] = []
    for part in range(5):
        value = low + (high - low) * part / 4
        _, y = place(0, value)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.2f}</text>')
        x, y = place(x_max * part / 4, low)
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{x_max * part / 4:.3g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(time_name)}</text>')
    parts.append(f'<text x="18" y="{(TOP + HEIGHT) / 2}" transform="rotate(-90 18 {(TOP + HEIGHT) / 2})">loss</text>')
    for index, (region, points) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        line = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = TOP + 16 * index + 10
        parts.append(
            f'<text x="{WIDTH - RIGHT + 12}" y="{y}" fill="{colour}">{escape(region)} {points[-1][1]:.3f}</text>'
        )
    return parts


def _byte_panel(rows: Sequence[tuple[str, int]], top: int) -> list[str]:
    parts: list[str] = []
    most = max((count for _, count in rows), default=0) or 1
    for index, (name, count) in enumerate(rows):
        y = top + BAR_HEIGHT * index
        width = (WIDTH - LEFT - RIGHT - 130) * count / most
        parts.append(f'<text x="{LEFT}" y="{y + 14}">{escape(name)}</text>')
        parts.append(f'<rect x="{LEFT + 130}" y="{y}" width="{width:.1f}" height="18" fill="{COLOURS[0]}"/>')
        parts.append(f'<text x="{LEFT + 136 + width:.1f}" y="{y + 14}">{byte_text(count)}</text>')
    return parts


def _bounds(series: dict[str, Series]) -> tuple[float, float, float] | None:
    """(last time, lowest and highest loss), widened so that no scale is empty."""
    points = [point for one in series.values() for point in one if math.isfinite(point[1])]
    if not points:
        return None
    low, high = min(y for _, y in points), max(y for _, y in points)
    return max(1e-9, *(x for x, _ in points)), low, high if high > low else low + 1.0


def terminal(history: History, time_name: str, *, width: int = 64, height: int = 12) -> RenderableType:
    """The same for the terminal: lines of braille dots, and bars."""
    series = series_of(history)
    bounds = _bounds(series)
    parts: list[RenderableType] = []
    if bounds is not None:
        x_max, low, high = bounds
        for row, line in enumerate(_braille(series, bounds, width, height)):
            label = f"{high:7.3f} " if row == 0 else f"{low:7.3f} " if row == height - 1 else " " * 8
            parts.append(Text(label, style="dim").append(line))
        legend = Text(f"{'':8}0 to {x_max:.4g} {time_name}: loss of ", style="dim")
        for index, (region, points) in enumerate(series.items()):
            legend.append(f" {region} {points[-1][1]:.3f} ", style=TERMINAL_COLOURS[index % len(TERMINAL_COLOURS)])
        parts.append(legend)
    table = Table(box=None, show_header=False, title="bytes sent per link", title_justify="left")
    rows = link_rows(history)
    most = max((count for _, count in rows), default=0) or 1
    for name, count in rows:
        table.add_row(name, "█" * round(32 * count / most), byte_text(count))
    return Group(*parts, table)


def _joined(points: Series, step: float) -> Series:
    """The points, and others on the straight lines between them, no further apart than `step`."""
    found: Series = points[:1]
    for (x_before, y_before), (x, y) in pairwise(points):
        num_steps = max(1, math.ceil((x - x_before) / step)) if math.isfinite(y_before + y) else 1
        shares = [number / num_steps for number in range(1, num_steps)]
        found += [(x_before + share * (x - x_before), y_before + share * (y - y_before)) for share in shares]
        found.append((x, y))
    return found


def _braille(series: dict[str, Series], bounds: tuple[float, float, float], width: int, height: int) -> list[Text]:
    x_max, low, high = bounds
    cells = [[0] * width for _ in range(height)]
    owners = [[0] * width for _ in range(height)]
    for index, points in enumerate(series.values()):
        for x, y in _joined(points, x_max / (2 * width)):
            column = min(2 * width - 1, int(x / x_max * (2 * width - 1)))
            row = min(4 * height - 1, max(0, int((high - y) / (high - low) * (4 * height - 1))))
            cells[row // 4][column // 2] |= BRAILLE_DOTS[row % 4][column % 2]
            owners[row // 4][column // 2] = index
    lines: list[Text] = []
    for row in range(height):
        line = Text()
        for column in range(width):
            colour = TERMINAL_COLOURS[owners[row][column] % len(TERMINAL_COLOURS)]
            line.append(chr(0x2800 + cells[row][column]), style=colour)
        lines.append(line)
    return lines
