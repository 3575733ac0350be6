"""The page *Runs*: how runs of any kind go, read from the logs that leads keep; the plot moves while they go on."""

from collections.abc import Sequence
from html import escape
from typing import Any

from nicegui import ui

from farflung.apps.dashboard.live import Live, LiveChart
from farflung.apps.dashboard.run_log import Decided
from farflung.apps.dashboard.runs_view import OVER_BYTES, OVER_TIME, Curve, LinkRow, RunView, SeatRow
from farflung.apps.dashboard.style import COLOURS, TEXT, axis
from farflung.apps.dashboard.tiles import draw_tiles
from farflung.apps.runs.plot import byte_text


class RunsPage:
    """Made within an element of the page; `show` brings it up to date."""

    def __init__(self) -> None:
        with ui.row().classes("w-full items-center"):
            self._run = ui.select([], label="run").props("dense outlined").style("min-width: 180px")
            self._quantity = ui.select([], label="plot").props("dense outlined").style("min-width: 120px")
            self._over = ui.toggle([OVER_TIME, OVER_BYTES], value=OVER_TIME).props("dense no-caps")
        self._head = Live(ui.element("div").classes("card"), _draw_head)
        with ui.element("div").classes("card"):
            self._chart = LiveChart(chart_options((), "", OVER_TIME), "chart")
        self._seats = Live(ui.element("div").classes("card"), _draw_seats)
        self._links = Live(ui.element("div").classes("card"), _draw_links)
        self._decisions = Live(ui.element("div"), _draw_decisions)

    @property
    def chosen(self) -> str:
        """The folder of the run that is looked at; empty: none."""
        return str(self._run.value or "")

    @property
    def quantity(self) -> str:
        """What is plotted."""
        return str(self._quantity.value or "")

    @property
    def over(self) -> str:
        """Over what it is plotted."""
        return str(self._over.value)

    def offer(self, runs: dict[str, str]) -> None:
        """Names of the runs there are, by folder."""
        if runs != self._run.options:
            self._run.set_options(runs, value=self.chosen if self.chosen in runs else next(iter(runs), None))

    def show(self, view: RunView, found: Sequence[Curve]) -> None:
        """Bring it up to date."""
        names = list(view.quantities)
        if names != self._quantity.options:
            chosen = self.quantity if self.quantity in names else next(iter(names), None)
            self._quantity.set_options(names, value=chosen)
        self._head.show(view)
        self._chart.show(chart_options(found, self.quantity, self.over))
        self._seats.show(view.seats)
        self._links.show(view.links)
        self._decisions.show(view.decisions)

    def say(self, sentence: str) -> None:
        """There is nothing to show, and why."""
        self._head.show(RunView(sentence, "", "", "", (), (), (), (), ()))


def _draw_head(view: RunView) -> None:
    ui.html(f"<h2>{escape(view.name)}</h2>", sanitize=False)
    if view.kind:
        ui.label(f"{view.kind} · {view.state} · {view.folder}").classes("soft").mark("run-state")
    draw_tiles(view.tiles)


def _draw_seats(rows: tuple[SeatRow, ...]) -> None:
    names = ("seat", "steps", "tokens", "loss", "staleness", "idle")
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(
        f"<tr><td>{escape(row.name)}</td><td>{row.num_steps:,}</td><td>{row.num_tokens:,}</td>"
        f"<td>{_number(row.loss, 3)}</td><td>{_number(row.staleness, 1)}</td><td>{escape(row.idle)}</td></tr>"
        for row in rows
    )
    table = f'<div style="overflow-x: auto"><table class="rows"><tr>{head}</tr>{body}</table></div>'
    ui.html(f"<h2>Who does what, and waits how long</h2>{table}", sanitize=False)


def _draw_links(rows: tuple[LinkRow, ...]) -> None:
    body = "".join(
        f'<tr><td>{escape(row.name)}</td><td style="width: 50%"><div class="bar" style="width: {row.share:.1%}"></div>'
        f"</td><td>{byte_text(row.num_bytes)}</td></tr>"
        for row in rows
    )
    ui.html(f'<h2>Bytes per link</h2><table class="rows">{body}</table>', sanitize=False)


def _draw_decisions(decisions: tuple[Decided, ...]) -> None:
    if not decisions:
        return
    rows = "".join(
        f'<tr><td class="soft">{decided.seconds:.0f} s</td><td class="soft">{escape(decided.seat)}</td>'
        f"<td>{escape(decided.sentence)}</td></tr>"
        for decided in decisions
    )
    ui.html(f'<h2>What seats have chosen</h2><table class="rows">{rows}</table>', sanitize=False).classes("card")


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def chart_options(found: Sequence[Curve], quantity: str, over: str) -> dict[str, Any]:
    """The plot; bytes are shown in units that people read."""
    unit, name = _unit(found, over)
    series = [
        {
            "name": curve.name,
            "type": "line",
            "showSymbol": False,
            "data": [[x / unit, y] for x, y in curve.points],
            "color": COLOURS[index % len(COLOURS)],
        }
        for index, curve in enumerate(found)
    ]
    return {
        "animation": False,
        "grid": {"left": 56, "right": 16, "top": 40, "bottom": 44},
        "legend": {"top": 0, "textStyle": {"color": TEXT}},  # the axis of x has its name below
        "tooltip": {"trigger": "axis"},
        "xAxis": axis(name),
        "yAxis": axis(quantity, nameLocation="end", nameGap=12, scale=True),
        "series": series,
    }


def _unit(found: Sequence[Curve], over: str) -> tuple[float, str]:
    if over == OVER_TIME:
        return 1.0, "seconds"
    most = max((x for curve in found for x, _ in curve.points), default=0.0)
    for name, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if most >= size:
            return size, f"{name} sent"
    return 1.0, "bytes sent"
