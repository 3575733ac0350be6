"""Nodes learn of tickets withdrawn from whoever knows, keep them, and come to the same end in any order."""

import itertools
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from farflung.mesh.config import RevocationsConfig
from farflung.mesh.messages import CompareRevocations, SameRevocations, TellRevocations
from farflung.mesh.records import Record
from farflung.mesh.revocations import KEY, Revocations
from farflung.wire.certificate import ChainRefused, TicketRole
from farflung.wire.chain import Permission
from farflung.wire.revocation import Revocation, revoke
from farflung.wire.ticket import SwarmAuthority, Ticket
from farflung.world.address import Address, PeerId
from farflung.world.effects import Load, Note, Save, Send, WakeAt

WALL = 1_800_000_000.0
DAY = 86_400.0
FOUNDER = SwarmAuthority.found("test", WALL).ticket((), WALL + 100 * DAY, WALL)
DEPUTY = FOUNDER.invite(TicketRole.ADMIN, WALL + 50 * DAY, WALL)
SERVER = FOUNDER.invite(TicketRole.SERVER, WALL + 50 * DAY, WALL)
BELOW = DEPUTY.invite(TicketRole.ADMIN, WALL + 20 * DAY, WALL)
MEET, OTHER, PLAIN = PeerId("meet"), PeerId("other"), PeerId("plain")


def by(admin: Ticket, other: Ticket) -> Revocation:
    return revoke(admin, other.serial, other.expires_at, WALL)


def record(peer: PeerId, is_rendezvous: bool) -> Record:
    return Record(
        peer=peer,
        sequence=1,
        issued_at=WALL,
        lease_seconds=30.0,
        role=TicketRole.SERVER,
        is_rendezvous=is_rendezvous,
    )


VIEW = {MEET: record(MEET, True), OTHER: record(OTHER, True), PLAIN: record(PLAIN, False)}


class Node:
    """One role, what it has kept, and how often it heard something new."""

    def __init__(self, peer: PeerId, kept: bytes | None = None, **config: int) -> None:
        self.peer = peer
        self.num_news = 0
        self.role = Revocations(
            peer,
            VIEW,
            authority=FOUNDER.authority,
            swarm_id=FOUNDER.swarm_id,
            wall_offset_seconds=WALL,
            on_news=self._hear,
            config=RevocationsConfig(**config),
        )
        self.kept = kept
        assert self.role.start(0.0)[0] == Load(KEY, KEY)
        self.notes = [effect for effect in self.role.finished(KEY, kept, 0.0) if isinstance(effect, Note)]

    def _hear(self) -> None:
        self.num_news += 1

    def sent(self, effects: Sequence[Any]) -> list[Send]:
        """What it sends; what it saves is kept."""
        for effect in effects:
            if isinstance(effect, Save):
                self.kept = effect.value
        return [effect for effect in effects if isinstance(effect, Send)]

    def knows(self, ticket: Ticket) -> bool:
        return self.role.covers(Permission(ticket.serial, ticket.role, len(ticket.permissions)))


def deliver(nodes: dict[PeerId, Node], source: PeerId, sends: list[Send], now: float = 0.0) -> int:
    """Carry messages until there are none; how many there were."""
    waiting = [(source, send) for send in sends]
    for number in itertools.count():
        if not waiting:
            return number
        sender, send = waiting.pop(0)
        node = nodes[send.destination.peer]
        effects = node.role.receive(Address(sender, "revocations"), send.message, now)
        waiting += [(node.peer, further) for further in node.sent(effects)]
    raise AssertionError


def test_what_a_plain_node_withdraws_reaches_all_through_rendezvous_nodes() -> None:
    nodes = {peer: Node(peer) for peer in VIEW}
    num_messages = deliver(nodes, PLAIN, nodes[PLAIN].sent(nodes[PLAIN].role.withdraw(by(FOUNDER, SERVER), 0.0)))
    assert all(node.knows(SERVER) and node.num_news == 1 for node in nodes.values())
    assert num_messages == 6, "two from the node, two from each rendezvous node, and no more"


def test_what_is_known_already_is_not_passed_on() -> None:
    node = Node(MEET)
    assert node.sent(node.role.withdraw(by(FOUNDER, SERVER), 0.0))
    assert node.sent(node.role.withdraw(by(FOUNDER, SERVER), 0.0)) == []
    assert node.num_news == 1


def test_a_node_that_was_started_again_remembers() -> None:
    node = Node(MEET)
    node.sent(node.role.withdraw(by(FOUNDER, SERVER), 0.0))
    assert Node(MEET, node.kept).knows(SERVER)
    damaged = Node(MEET, b"\xc1")
    assert not damaged.knows(SERVER) and "cannot be read" in damaged.notes[0].sentence


def test_comparing_fills_in_what_either_lacks() -> None:
    nodes = {peer: Node(peer) for peer in VIEW}
    nodes[PLAIN].role.withdraw(by(FOUNDER, SERVER), 0.0)  # and what it sends is lost
    nodes[MEET].role.withdraw(by(FOUNDER, DEPUTY), 0.0)
    asked = [send for now in (1.0, 11.0) for send in nodes[PLAIN].sent(nodes[PLAIN].role.wake(now))]
    assert [send.destination.peer for send in asked] == [OTHER, MEET], "one after another"
    assert all(isinstance(send.message, CompareRevocations) for send in asked)
    deliver(nodes, PLAIN, asked)
    assert all(node.knows(SERVER) and node.knows(DEPUTY) for node in nodes.values())
    assert len({node.role.digest for node in nodes.values()}) == 1


def test_nodes_that_know_the_same_say_so_and_no_more() -> None:
    node = Node(MEET)
    (answer,) = node.sent(
        node.role.receive(Address(PLAIN, "revocations"), CompareRevocations(digest=Node(PLAIN).role.digest), 0.0)
    )
    assert answer.message == SameRevocations()


def test_many_are_told_in_parts() -> None:
    node = Node(MEET, revocations_per_message_max=2)
    tickets = [FOUNDER.invite(TicketRole.CLIENT, WALL + DAY, WALL) for _ in range(5)]
    for ticket in tickets:
        node.role.withdraw(by(FOUNDER, ticket), 0.0)
    other = Node(PLAIN)
    deliver({MEET: node, PLAIN: other, OTHER: Node(OTHER)}, PLAIN, other.sent(_compare_with_meet(other)))
    assert all(other.knows(ticket) for ticket in tickets)


def _compare_with_meet(node: Node) -> list[Send]:
    return [Send(Address(MEET, "revocations"), CompareRevocations(digest=node.role.digest))]


def test_every_order_comes_to_the_same_end() -> None:
    """A deputy that is withdrawn itself has withdrawn others; two admins withdraw the same ticket."""
    statements = [by(FOUNDER, DEPUTY), by(DEPUTY, SERVER), by(FOUNDER, SERVER), by(DEPUTY, BELOW)]
    digests: set[bytes] = set()
    for order in itertools.permutations(statements):
        node = Node(MEET)
        for statement in order:
            node.role.withdraw(statement, 0.0)
        assert node.knows(DEPUTY) and node.knows(SERVER) and node.knows(BELOW)
        digests.add(node.role.digest)
    assert len(digests) == 1


def test_a_statement_that_proves_nothing_is_noted_and_those_before_it_count() -> None:
    node = Node(MEET)
    forged = msgspec.structs.replace(by(FOUNDER, DEPUTY), signature=bytes(64))
    told = TellRevocations(revocations=[by(FOUNDER, SERVER), forged], digest=b"")
    effects = node.role.receive(Address(PLAIN, "revocations"), told, 0.0)
    assert node.knows(SERVER) and not node.knows(DEPUTY)
    assert any(isinstance(effect, Note) and "proves nothing" in effect.sentence for effect in effects)
    with pytest.raises(ChainRefused):
        node.role.withdraw(forged, 0.0)


def test_what_has_ended_by_itself_is_forgotten_and_not_taken_again() -> None:
    node = Node(MEET)
    node.role.withdraw(by(FOUNDER, SERVER), 0.0)
    effects = node.role.wake(51 * DAY)
    assert isinstance(effects[0], WakeAt) and not node.knows(SERVER)
    assert node.sent(node.role.withdraw(by(FOUNDER, SERVER), 51 * DAY)) == []
    assert not node.knows(SERVER)


def test_there_is_a_limit() -> None:
    node = Node(MEET, num_revocations_max=1)
    node.role.withdraw(by(FOUNDER, SERVER), 0.0)
    assert node.sent(node.role.withdraw(by(FOUNDER, DEPUTY), 0.0)) == []
    assert not node.knows(DEPUTY)
