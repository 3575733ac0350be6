"""What the page *Swarm* says: coverage, what one lost node breaks, sites, and the ways that nodes have measured."""

import msgspec

from farflung.apps.dashboard.site_map import centres_of, site_map
from farflung.apps.dashboard.swarm_page import model_html
from farflung.apps.dashboard.swarm_view import NO_SITE, ModelView, breaks, models, picture, seen, ways
from farflung.mesh.reach import TOPIC, Distance
from farflung.mesh.records import Record
from farflung.systems.swarm.info import BlockRange, ServerInfo, ServerState
from farflung.wire.certificate import TicketRole
from farflung.world.address import PeerId

A, B, C = PeerId("a" * 52), PeerId("b" * 52), PeerId("c" * 52)


def info(first: int, last: int, state: ServerState = ServerState.ONLINE, num_model_blocks: int = 0) -> ServerInfo:
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


def record(peer: PeerId, site: str = "", **measured: Distance) -> Record:
    """Of a server that has measured ways to others, by their first letter."""
    table = {PeerId(letter * 52): distance for letter, distance in measured.items()}
    return Record(
        peer=peer,
        sequence=1,
        issued_at=0.0,
        lease_seconds=30.0,
        role=TicketRole.SERVER,
        site=site,
        topics={TOPIC: msgspec.msgpack.encode(table)},
    )


VIEW = {
    A: record(A, "east", b=Distance(0.010, None), c=Distance(0.100, 4e6)),
    B: record(B, "east", a=Distance(0.020, None), c=Distance(0.200, None)),
    C: record(C, "west", a=Distance(0.300, 2e6)),
}


def test_what_one_server_alone_holds_breaks_with_it() -> None:
    assert breaks({A: info(0, 3), B: info(2, 4)}) == {A: [0, 1], B: [3]}
    assert breaks({A: info(0, 4), B: info(0, 4)}) == {A: [], B: []}
    assert breaks({}) == {}


def test_a_server_that_takes_no_sessions_breaks_nothing_and_helps_nobody() -> None:
    servers = {A: info(0, 2), B: info(0, 2, ServerState.DRAINING), C: info(0, 2, ServerState.JOINING)}
    assert breaks(servers) == {A: [0, 1]}


def test_blocks_that_nobody_announces_are_missing_when_somebody_knows_how_many_there_are() -> None:
    (told,) = models(VIEW, {A: info(0, 2, num_model_blocks=4)}, {})
    assert (told.counts, told.missing) == ((1, 1, 0, 0), "2:4")
    (remembered,) = models(VIEW, {A: info(0, 2)}, seen({}, {C: info(2, 4)}))
    assert remembered.missing == "2:4"
    (gone,) = models(VIEW, {}, seen({}, {C: info(2, 4)}))
    assert (gone.name, gone.counts, gone.missing) == ("tiny", (0, 0, 0, 0), "0:4")


def test_the_model_says_where_the_only_holder_is() -> None:
    (model,) = models(VIEW, {A: info(0, 2), B: info(0, 4), C: info(3, 4)}, {})
    assert [(one.peer, one.site, one.blocks) for one in model.breaks] == [(B, "east", "2:3")]


def test_cells_are_red_yellow_and_green_and_names_are_escaped() -> None:
    html = model_html(ModelView("<b>", "f" * 40, (0, 1, 2), "0:1", ()))
    assert [word for word in ("none", "one", "many") if f'class="{word}"' in html] == ["none", "one", "many"]
    assert "&lt;b&gt;" in html and "<b>" not in html and "No server for blocks 0:1" in html


def test_ways_are_medians_between_sites_and_those_within_come_last() -> None:
    between, within = ways(VIEW)
    assert (between.one, between.other, between.num_measured) == ("east", "west", 3)
    assert (between.round_trip_seconds, between.bytes_per_second) == (0.2, 3e6)
    assert (within.one, within.other, within.round_trip_seconds) == ("east", "east", 0.015)


def test_ways_to_nodes_that_are_gone_do_not_count() -> None:
    assert ways({A: VIEW[A]}) == []


def test_the_picture_has_sites_in_order_and_the_nameless_one_last() -> None:
    view = {A: record(A), B: record(B, "west"), C: record(C, "east")}
    shown = picture("swarm", A, view, {B: info(0, 2)}, {B: 0.01234}, {})
    assert list(shown.sites) == ["east", "west", NO_SITE]
    nodes = {node.peer: node for node in shown.nodes}
    assert nodes[A].is_self and nodes[B].round_trip_seconds == 0.012 and nodes[C].served is None
    served = nodes[B].served
    assert served is not None and (served.blocks, served.state) == ("0:2", "online")


def test_a_picture_of_the_same_swarm_is_equal_whatever_the_order_of_records() -> None:
    turned = dict(reversed(VIEW.items()))
    assert picture("swarm", A, VIEW, {}, {}, {}) == picture("swarm", A, turned, {}, {}, {})


def test_the_map_shows_every_site_node_and_measured_way() -> None:
    shown = picture("swarm", A, VIEW, {}, {}, {})
    svg = site_map(shown.sites, shown.ways)
    assert svg.count('r="40.0"') == 2 and svg.count('r="6.0"') == 3 and svg.count("<line") == 1
    assert "200 ms · 3.0 MB/s" in svg and "15 ms" in svg


def test_sites_lie_apart() -> None:
    assert centres_of(["one"]) == {"one": (0.0, 0.0)}
    assert list(centres_of(["one", "two"]).values()) == [(-100.0, 0.0), (100.0, -0.0)]
    assert len(set(centres_of([str(number) for number in range(7)]).values())) == 7
