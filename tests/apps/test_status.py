"""What status shows: how many servers hold each block, which lack one, and nothing that a client's ticket claims."""

from farflung.apps.announced import TOPIC, AnnouncedServers
from farflung.apps.status import bar, coverage, summary
from farflung.mesh.config import Profile
from farflung.mesh.member import Member
from farflung.systems.swarm.info import BlockRange, ServerInfo, ServerState
from farflung.wire.certificate import TicketRole
from farflung.wire.identity import Identity


def info(first: int, last: int, state: ServerState = ServerState.ONLINE, *, num_model_blocks: int = 0) -> ServerInfo:
    return ServerInfo(
        model="fingerprint",
        model_name="tiny",
        blocks=BlockRange(first, last),
        state=state,
        blocks_per_second=10.0,
        forward_tokens_per_second=100.0,
        cache_tokens_max=64,
        cache_tokens_left=32,
        dtype="float32",
        started_at=0.0,
        version="0",
        num_model_blocks=num_model_blocks,
    )


def test_coverage_counts_those_that_take_sessions() -> None:
    servers = [info(0, 2), info(1, 4), info(1, 3), info(4, 6, ServerState.JOINING)]
    assert coverage(servers) == [1, 3, 2, 1, 0, 0]
    assert coverage([]) == []


def test_blocks_of_the_model_that_no_server_announces_lack_servers_too() -> None:
    assert coverage([info(0, 2, num_model_blocks=4)]) == [1, 1, 0, 0]


def test_the_bar_has_a_digit_per_block_and_the_worst_of_many() -> None:
    assert bar([0, 1, 2, 12]).plain == "0129"
    wide = [3] * 150 + [0] + [3] * 49
    assert len(bar(wide)) == 100
    assert bar(wide).plain.count("0") == 1


def test_the_summary_has_every_server() -> None:
    peer = Identity.generate().peer
    (server,) = summary("swarm", {peer: info(0, 2)})["servers"]
    assert (server["peer"], server["blocks"], server["state"]) == (peer, [0, 2], "online")


def member_as(role: TicketRole, content: bytes) -> Member:
    """A member that sees its own announcement under a role."""
    member = Member(Identity.generate(), Profile(role=role), {}, wall_offset_seconds=1e9)
    member.publish(TOPIC, content, 0.0)
    member.start(0.0)
    return member


def test_only_tickets_of_servers_make_servers() -> None:
    content = info(0, 2).to_bytes()
    for role, num_servers in (
        (TicketRole.CLIENT, 0),
        (TicketRole.SERVER, 1),
        (TicketRole.WORKER, 1),
        (TicketRole.ADMIN, 1),
    ):
        assert len(AnnouncedServers(member_as(role, content))()) == num_servers, role


def test_an_announcement_that_is_nonsense_is_left_out() -> None:
    assert AnnouncedServers(member_as(TicketRole.SERVER, b"\xc1 nonsense"))() == {}
