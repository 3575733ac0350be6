"""The page *Events* in a browser: what servers have chosen, and why, as they tell it."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.conftest import PHONE_WIDTH, is_too_wide

pytestmark = pytest.mark.loopback


def test_decisions_of_all_nodes_are_there_with_their_reasons(
    fleet: Any, address: str, look: Callable[..., Any]
) -> None:
    fleet.complete()
    page = look(f"{address}/events", width=PHONE_WIDTH)
    server = fleet.servers[0]
    page.get_by_placeholder("words").fill(f"{server.peer[:8]} serving")
    page.get_by_text(f"serving blocks {server.blocks} at").first.wait_for()
    page.get_by_placeholder("words").fill("nothing has this in it")
    page.get_by_text("No decision of that kind has been told.").wait_for()
    assert not is_too_wide(page)
    page.get_by_placeholder("words").fill("")
    newcomer = fleet.serve("0:2")
    fleet.wait_serving(newcomer)
    page.get_by_text(newcomer.peer[:8]).first.wait_for()
    newcomer.kill()
