"""A row of numbers with their names below."""

from collections.abc import Sequence
from html import escape

from nicegui import ui


def draw_tiles(shown: Sequence[tuple[str, str]]) -> None:
    """Draw (number, name) pairs."""
    with ui.element("div").classes("tiles"):
        for number, name in shown:
            ui.html(f"<b>{escape(number)}</b><span>{escape(name)}</span>", sanitize=False).classes("tile")
