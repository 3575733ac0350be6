"""The page *Swarm* in a browser, over real servers that are killed and come back."""

import re
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.conftest import PHONE_WIDTH, is_too_wide, start_dashboard
from tests.loopback.fleet import wait_until

pytestmark = pytest.mark.loopback

CELLS = '[data-model="tiny"] span'


def wait_classes(page: Any, classes: list[str]) -> None:
    """Wait until the cells of the tiny model's blocks are these."""
    shown = f"[...document.querySelectorAll('{CELLS}')].map(cell => cell.className)"
    page.wait_for_function(f"JSON.stringify({shown}) === JSON.stringify({classes})")


def is_red(page: Any, selector: str) -> bool:
    """Whether an element has a colour that is red before all else."""
    colour = page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).backgroundColor")
    red, green, blue = map(int, re.findall(r"\d+", colour)[:3])
    return red > 1.5 * max(green, blue)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGTERM, id="they leave"),
        pytest.param(signal.SIGKILL, id="they are killed", marks=pytest.mark.slow),  # leases end in half a minute
    ],
)
def test_coverage_turns_red_and_heals(
    fleet: Any,
    address: str,
    look: Callable[..., Any],
    photograph: Callable[..., None],
    number: signal.Signals,
) -> None:
    fleet.complete()
    page, other = look(address), look(start_dashboard(fleet, "--join", fleet.ticket()), width=PHONE_WIDTH)
    wait_classes(page, ["many"] * 4)
    page.wait_for_function("document.querySelectorAll('[data-peer]').length >= 6")
    first, second = [server for server in fleet.servers if server.blocks == "2:4"]
    first.send(number)
    wait_classes(page, ["many", "many", "one", "one"])
    page.get_by_text(f"If {second.peer[:8]} (paris) is lost, nobody serves blocks 2:4.").wait_for()
    photograph(page, "swarm", once="document.querySelectorAll('.map line').length === 3")
    second.send(number)
    for viewer in (page, other):
        wait_classes(viewer, ["many", "many", "none", "none"])
        viewer.get_by_text("No server for blocks 2:4").wait_for()
        assert is_red(viewer, f"{CELLS}.none") and not is_red(viewer, f"{CELLS}.many")
        assert not is_too_wide(viewer)
    wait_until(lambda: not first.is_alive and not second.is_alive, "both are gone")
    fleet.complete()
    for viewer in (page, other):
        wait_classes(viewer, ["many"] * 4)


def test_a_phone_shows_it_by_night_without_scrolling_sideways(
    fleet: Any, address: str, look: Callable[..., Any]
) -> None:
    fleet.complete()
    page = look(address, width=PHONE_WIDTH, scheme="dark")
    wait_classes(page, ["many"] * 4)
    assert not is_too_wide(page)
    assert page.evaluate("document.body.classList.contains('body--dark')")
    page.get_by_role("button", name="light or dark").click()
    page.get_by_role("button", name="light or dark").click()
    page.wait_for_function("!document.body.classList.contains('body--dark')")
