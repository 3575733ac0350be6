"""The page *Invite* in a browser: a ticket made there admits a node and, withdrawn there, no longer does."""

import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from farflung.apps.tickets import number_of
from farflung.apps.wiring import LoopBridge, Place, SwarmNode, join
from farflung.runtime.thread import LoopThread
from tests.browser.conftest import PHONE_WIDTH, is_too_wide, start_dashboard
from tests.loopback.fleet import wait_until

pytestmark = pytest.mark.loopback


@contextmanager
def node_of(ticket: str, home: Path) -> Iterator[tuple[LoopBridge, SwarmNode]]:
    """A node that comes in with a ticket, or tries to."""
    thread = LoopThread()
    bridge = LoopBridge(thread)
    try:
        node = bridge.run(join(Place(is_dial_only=True, home=home), ticket=ticket))
        yield bridge, node
        bridge.run(node.close())
    finally:
        thread.close()


def row_of(page: Any, number: str) -> Any:
    """A ticket's line on the page."""
    return page.locator(f'[data-invite="{number}"]')


def make_ticket(page: Any, role: str) -> str:
    """Make a ticket on the page and take it by its button."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_label("role").click()
    page.get_by_role("option", name=role).click()
    page.get_by_role("button", name="Make a ticket").click()
    page.get_by_text("Shown this once").wait_for()
    page.get_by_role("button", name="Copy").click()
    page.get_by_text("Copied.").wait_for()
    command = page.evaluate("navigator.clipboard.readText()")
    assert page.get_by_text(command, exact=True).count() == 1
    assert command.startswith("farflung join farflung1")
    return command.split()[-1]


def status_of(address: str, host: str) -> int:
    """What is answered to a page that believes to be at `host`."""
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{address}/invite", headers={"Host": host})) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_an_invite_admits_a_node_until_it_is_withdrawn(
    fleet: Any, address: str, look: Callable[..., Any], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    first, second = (
        start_dashboard(fleet, "--join", fleet.admin_ticket, home=home) for _ in range(2)
    )  # of one user, who looks at both
    page, other, outsider = (
        look(f"{first}/invite", width=PHONE_WIDTH),
        look(f"{second}/invite"),
        look(f"{address}/invite"),
    )
    outsider.get_by_text("the ticket of a client, which may look").wait_for()
    assert outsider.get_by_role("button", name="Make a ticket").count() == 0
    assert status_of(first, "elsewhere.example") == 400 and status_of(first, "localhost") == 200
    page.get_by_label("valid for").fill("soon")
    page.get_by_role("button", name="Make a ticket").click()
    page.get_by_text("'soon' is no duration").wait_for()
    page.get_by_label("valid for").fill("12h")
    ticket = make_ticket(page, "worker")
    number = number_of(ticket)
    for viewer in (page, other):
        row_of(viewer, number).get_by_text("valid until").wait_for()
        assert not is_too_wide(viewer)
    page.reload()
    row_of(page, number).wait_for()
    assert page.get_by_text("farflung1").count() == 0, "a ticket is shown once"
    with node_of(ticket, tmp_path / "inside") as (bridge, node):
        bridge.run(node.wait_joined(60.0))
        row_of(other, number).get_by_role("button", name="Withdraw").click()
        other.get_by_role("button", name="Keep it").click()
        other.get_by_role("button", name="Keep it").wait_for(state="hidden")
        assert bridge.call(node.node.network.links)
        row_of(other, number).get_by_role("button", name="Withdraw").click()
        other.get_by_role("button", name="Withdraw it").click()
        other.get_by_text("know and tell all others").wait_for()
        wait_until(lambda: not bridge.call(node.node.network.links), "its links are closed")
    for viewer in (page, other, outsider):
        row_of(viewer, number).get_by_text("withdrawn", exact=True).wait_for()
        assert not is_too_wide(viewer)
        assert row_of(viewer, number).get_by_role("button").count() == 0
    with node_of(ticket, tmp_path / "outside") as (bridge, node):
        told = node.losses.reasons
        wait_until(lambda: any("revoked" in reason for reason in told.values()), "it is told why it may not come in")
        assert not node.member.joined
