"""A ticket withdrawn by `farflung revoke` among real servers: links close, and nobody comes in with it any more."""

import contextlib
from pathlib import Path

import pytest

from farflung.apps.fork_server import ForkServer
from farflung.apps.joining import JoinFailed
from farflung.apps.tickets import invite, number_of
from farflung.apps.wiring import Connection
from tests.forge import run
from tests.loopback.fleet import Fleet, wait_until

pytestmark = pytest.mark.loopback


def num_links(connection: Connection) -> int:
    return connection.bridge.call(lambda: len(connection.node.node.network.links()))


def test_who_holds_a_revoked_ticket_is_shut_out(fleet: Fleet, forge: ForkServer, tmp_path: Path) -> None:
    revoked, other = fleet.ticket(), fleet.ticket()
    with contextlib.ExitStack() as stack:
        inside, bystander = (stack.enter_context(Connection(ticket)) for ticket in (revoked, other))
        for connection in (inside, bystander):
            wait_until(lambda one=connection: num_links(one) >= 5, "the client is linked to all servers")
        ended = run(forge, tmp_path, "revoke", number_of(revoked), "--join", fleet.admin_ticket)
        assert ended.status == 0, ended.text
        assert f"revoked {number_of(revoked)}" in ended.text and "tell all others" in ended.text
        wait_until(lambda: num_links(inside) == 0, "all servers have closed their links")
        assert num_links(bystander) >= 5
    with pytest.raises(JoinFailed, match="the ticket has been revoked"):
        Connection(revoked)
    with Connection(other):
        pass


def test_a_server_that_comes_later_hears_and_keeps_it(fleet: Fleet, forge: ForkServer, tmp_path: Path) -> None:
    revoked = fleet.ticket()
    ended = run(forge, tmp_path, "revoke", revoked, "--join", fleet.admin_ticket)
    assert ended.status == 0, ended.text
    newcomer = fleet.serve("0:2")
    fleet.wait_serving(newcomer)
    kept, number = newcomer.home / "store" / "revocations", bytes.fromhex(number_of(revoked))
    wait_until(lambda: kept.exists() and number in kept.read_bytes(), "it has heard and kept it")
    newcomer.kill()
    fleet.servers.remove(newcomer)


@pytest.mark.parametrize(
    ("which", "role", "sentence"),
    [
        ("nonsense", "admin", "give the ticket to withdraw, or its number of 40 digits"),
        ("0" * 39 + "1", "client", "a client ticket cannot revoke others"),
    ],
)
def test_mistakes_end_in_a_sentence(
    fleet: Fleet, forge: ForkServer, tmp_path: Path, which: str, role: str, sentence: str
) -> None:
    ticket = invite(fleet.admin_ticket, role, "1h", tmp_path)
    ended = run(forge, tmp_path, "revoke", which, "--join", ticket)
    assert ended.status == 2 and sentence in ended.text
