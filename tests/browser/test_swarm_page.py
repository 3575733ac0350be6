"""The page *Swarm* in a browser, over real servers that are killed and come back."""

import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.conftest import PHONE_WIDTH, is_too_wide
from tests.loopback.fleet import wait_until

pytestmark = pytest.mark.loopback

CELLS = '[data-model="tiny"] span'


def wait_classes(page: Any, classes: list[str]) -> None:
    """Wait until the cells of the tiny model's blocks are these."""
    shown = f"[...document.querySelectorAll('{CELLS}')].map(cell => cell.className)"
    page.wait_for_function(f"JSON.stringify({shown}) === JSON.stringify({classes})")


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
    page = look(address)
    wait_classes(page, ["many"] * 4)
    page.wait_for_function("document.querySelectorAll('[data-peer]').length >= 6")
    first, second = [server for server in fleet.servers if server.blocks == "2:4"]
    first.send(number)
    wait_classes(page, ["many", "many", "one", "one"])
    page.get_by_text(f"If {second.peer[:8]} (no site given) is lost, nobody serves blocks 2:4.").wait_for()
    photograph(page, "swarm")
    second.send(number)
    wait_classes(page, ["many", "many", "none", "none"])
    page.get_by_text("No server for blocks 2:4").wait_for()
    wait_until(lambda: not first.is_alive and not second.is_alive, "both are gone")
    fleet.complete()
    wait_classes(page, ["many"] * 4)


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
