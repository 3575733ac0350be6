"""A candidate's copy, message by message: what is proposed binds, what was confirmed is never cut."""

from collections.abc import Iterable

import pytest

from farflung.sim.simulation import Simulation
from farflung.systems.onebyte.config import Group, RoundsConfig
from farflung.systems.onebyte.log import Log
from farflung.systems.onebyte.messages import (
    ByteCopied,
    ByteCopy,
    ByteFollow,
    ByteLead,
    BytePropose,
    ByteResume,
    ByteViewIs,
    View,
)
from farflung.systems.onebyte.replica import Replica
from farflung.systems.onebyte.views import encode_view
from farflung.world.address import Address, PeerId
from farflung.world.effects import Effect, Save, Send
from tests.onebytes import header_of

A, B = PeerId("a"), PeerId("b")
GROUP = Group(candidates=(A, B), witness=PeerId("w"))
WITNESS = Address(PeerId("w"), "1bw")
CONFIG = RoundsConfig(num_rounds=5)
ALONE, BOTH = View(1, A, ()), View(2, A, (B,))


def replica(me: PeerId, view: View, *contents: bytes) -> Replica:
    log = Log(header_of())
    log.append(contents)
    return Replica(me, GROUP, CONFIG, log, view, None, 0.0)


def sent(effects: list[Effect], kind: type) -> list[object]:
    return [each.message for each in effects if isinstance(each, Send) and isinstance(each.message, kind)]


def proposed(candidate: Replica, beats: Iterable[float]) -> list[View]:
    """What it wants after these beats."""
    found = [sent(candidate.beat(float(now)), BytePropose) for now in beats]
    return list(dict.fromkeys(message.view for each in found for message in each if isinstance(message, BytePropose)))


def at(peer: PeerId) -> Address:
    return Address(peer, "1b")


def test_a_standby_that_is_about_to_be_admitted_is_needed_at_once() -> None:
    first = replica(A, ALONE, b"x")
    assert first.num_committed == 1
    effects = first.receive(at(B), ByteCopied(epoch=1, num_records=1), 1.0)
    assert sent(effects, BytePropose) == [BytePropose(view=BOTH)]
    first.order([b"y"], 1.0)
    assert first.num_committed == 1, "the witness may have accepted the view in which it needs the standby's copy"
    first.receive(WITNESS, ByteViewIs(view=BOTH), 2.0)
    assert first.num_committed == 1 and first.view == BOTH
    first.receive(at(B), ByteCopied(epoch=1, num_records=2), 2.0)
    assert first.num_committed == 1, "a confirmation of another epoch says nothing"
    first.receive(at(B), ByteCopied(epoch=2, num_records=2), 2.0)
    assert first.num_committed == 2


def test_what_was_proposed_binds_after_a_restart() -> None:
    with Simulation() as simulation:
        world = simulation.node("a")
        first = Replica.open(world, header_of(), GROUP, CONFIG)
        first.order([b"x"], 0.0)
        for effect in first.receive(at(B), ByteCopied(epoch=1, num_records=1), 1.0):
            if isinstance(effect, Save):
                world.store.write(effect.key, effect.value)
        again = Replica.open(world, header_of(), GROUP, CONFIG)
        assert again.is_sequencer and sent(again.beat(2.0), BytePropose) == [BytePropose(view=BOTH)]
        again.order([b"z"], 2.0)
        assert again.num_committed == 0


def test_a_candidate_does_not_go_on_without_one_that_it_remembers_and_nobody_names() -> None:
    with Simulation() as simulation:
        world = simulation.node("a")
        world.store.write(f"onebyte-view-{header_of().run_name}", encode_view(View(2, A, (PeerId("gone"),))))
        with pytest.raises(ValueError, match="gone kept this journal too"):
            Replica.open(world, header_of(), GROUP, CONFIG)


def test_a_candidate_cuts_off_what_never_counted_and_only_once() -> None:
    second = replica(B, View(3, B, ()), b"x", b"mine")
    new = View(4, A, ())
    (question,) = sent(second.receive(at(A), ByteLead(view=new), 1.0), ByteFollow)
    assert isinstance(question, ByteFollow)
    first = replica(A, new, b"x", b"theirs", b"more")
    (answer,) = sent(first.receive(at(B), question, 1.0), ByteResume)
    assert isinstance(answer, ByteResume) and answer.num_records == 1
    effects = second.receive(at(A), answer, 1.0)
    assert second.log.contents == [b"x"] and sent(effects, ByteCopied) == [ByteCopied(epoch=4, num_records=1)]
    copy = ByteCopy(epoch=4, first_record=1, check=first.log.check_after(1), records=(b"theirs", b"more"))
    second.receive(at(A), copy, 1.0)
    assert second.log.hash == first.log.hash
    second.receive(at(A), answer, 2.0)
    assert second.log.hash == first.log.hash, "the answer came twice"


def test_records_that_do_not_follow_are_not_taken() -> None:
    second = replica(B, BOTH, b"x")
    for first_record, check in ((1, bytes(8)), (2, second.log.check_after(1))):
        copy = ByteCopy(epoch=2, first_record=first_record, check=check, records=(b"y",))
        assert second.receive(at(A), copy, 1.0) == [] and second.log.contents == [b"x"]


def test_a_sequencer_that_was_replaced_hears_of_it_from_its_successor() -> None:
    second = replica(B, View(3, B, ()), b"x")
    (told,) = sent(second.receive(at(A), ByteLead(view=BOTH), 1.0), ByteLead)
    first = replica(A, BOTH, b"x", b"y")
    assert isinstance(told, ByteLead) and first.num_committed == 0
    first.receive(at(B), told, 1.0)
    assert not first.is_sequencer and first.view == View(3, B, ())


def test_a_standby_gives_up_its_wish_when_the_sequencer_speaks_again() -> None:
    second = replica(B, BOTH, b"x")
    assert proposed(second, range(1, 12)) == [View(3, B, ())]
    second.receive(at(A), ByteLead(view=BOTH), 11.5)
    assert proposed(second, [12.0]) == []


def test_a_standby_that_stood_still_itself_does_not_take_that_for_silence() -> None:
    second = replica(B, BOTH, b"x")
    assert proposed(second, [1.0, 2.0, 100.0, 101.0, 102.0]) == [], "the sequencer's beats may lie unread"
    assert proposed(second, range(103, 110)) == [View(3, B, ())], "it has been silent for ten seconds more"


def test_patience_grows_with_views_that_bring_nothing() -> None:
    second, now, seconds = replica(B, BOTH, b"x"), 0.0, list[float]()
    for epoch in range(2, 12, 3):
        began_at = now
        while not proposed(second, [now := now + 1.0]):
            pass
        seconds.append(now - began_at)
        second.receive(WITNESS, ByteViewIs(view=View(epoch + 1, B, ())), now)
        second.receive(at(A), ByteLead(view=View(epoch + 2, A, ())), now)
        second.receive(at(A), ByteLead(view=View(epoch + 3, A, (B,))), now)
    assert seconds == [11.0, 21.0, 81.0, 321.0], "ten seconds and a beat; each view of another sequencer doubles them"
