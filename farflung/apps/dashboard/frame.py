"""The one page that all paths lead to: tabs, of which the one that is looked at is brought up to date."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from nicegui import ui

from farflung.apps.dashboard.style import CSS

TITLE = "Farflung"

Update = Callable[[], Awaitable[None]]
"""Brings what one viewer sees up to date."""


@dataclass(frozen=True, slots=True)
class Tab:
    """One tab and what is under it."""

    name: str
    path: str
    build: Callable[[], Update]
    """Called within the tab's panel when it is first looked at."""
    every_seconds: float = 1.0


def install(swarm: str, tabs: Sequence[Tab]) -> None:
    """Make the page, at the path of every tab; the first tab's is also the root."""
    named = {tab.name: tab for tab in tabs}
    for tab in tabs:
        _install_at(swarm, named, tab.name, tab.path)
    _install_at(swarm, named, tabs[0].name, "/")


def _install_at(swarm: str, tabs: Mapping[str, Tab], first: str, path: str) -> None:
    @ui.page(path, title=f"{TITLE}: {swarm}" if swarm else TITLE)
    def page() -> None:
        _build(swarm, tabs, first)


def _build(swarm: str, tabs: Mapping[str, Tab], first: str) -> None:
    ui.add_css(CSS)
    dark = ui.dark_mode(value=None)
    with ui.header().classes("items-center justify-between no-wrap").style("padding: 4px 12px; gap: 8px"):
        ui.label(swarm or TITLE).classes("ellipsis gt-xs").style("font-weight: 600")
        with ui.tabs(value=first).props("dense no-caps shrink inline-label mobile-arrows") as bar:  # pyright: ignore[reportArgumentType]
            for name in tabs:
                ui.tab(name)
        night = ui.button(icon="contrast").props('flat round dense color=white aria-label="light or dark"')
        night.on_click(lambda: dark.set_value(True if dark.value is None else not dark.value))
    _Panels(tabs, first, bar)


class _Panels:
    """The panels of one viewer, each built when it is first looked at."""

    def __init__(self, tabs: Mapping[str, Tab], first: str, bar: ui.tabs) -> None:
        self._tabs = tabs
        self._updates: dict[str, Update] = {}
        self._timers: dict[str, ui.timer] = {}
        self._places: dict[str, ui.element] = {}
        with ui.tab_panels(bar, value=first, animated=False).classes("w-full").style("background: transparent"):
            for name in tabs:
                with ui.tab_panel(name):
                    self._places[name] = ui.element("div").classes("panel")
        bar.on_value_change(lambda event: self._look_at(str(event.value)))
        self._look_at(first)

    def _look_at(self, name: str) -> None:
        for other, timer in self._timers.items():
            timer.active = other == name
        if name not in self._timers:
            tab = self._tabs[name]
            with self._places[name]:
                self._timers[name] = ui.timer(tab.every_seconds, tab.build())
        ui.run_javascript(f"history.replaceState(null, '', {self._tabs[name].path!r})")
