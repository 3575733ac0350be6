"""The page *Events*: what nodes have decided, and why, newest first; with words to choose by."""

import time
from html import escape

from nicegui import ui

from farflung.apps.dashboard.events_view import SHOWN_MAX, Event
from farflung.apps.dashboard.live import Live

ShownEvents = tuple[tuple[Event, str], ...]


class EventsPage:
    """Made within an element of the page; `show` brings it up to date."""

    def __init__(self) -> None:
        self._words = ui.input(placeholder="words, such as a node, an actor or a site").props(
            "dense outlined clearable"
        )
        self._words.classes("w-full")
        self._events = Live(ui.element("div").classes("card"), _draw)

    @property
    def words(self) -> str:
        """What is looked for."""
        return self._words.value or ""

    def show(self, events: ShownEvents) -> None:
        """Bring it up to date."""
        self._events.show(events)


def _draw(events: ShownEvents) -> None:
    if not events:
        ui.label("No decision of that kind has been told.").classes("soft")
        return
    rows = "".join(_row(event, site) for event, site in events)
    more = f'<div class="soft">The newest {SHOWN_MAX}.</div>' if len(events) == SHOWN_MAX else ""
    ui.html(f'<table class="rows">{rows}</table>{more}', sanitize=False)


def _row(event: Event, site: str) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(event.wall_seconds))
    where = f'<span class="mono">{escape(event.node)}</span> {escape(site)} · {escape(event.actor)}'
    return f'<tr><td class="soft">{at}</td><td><div class="soft">{where}</div>{escape(event.sentence)}</td></tr>'
