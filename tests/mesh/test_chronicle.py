"""A node tells what it has decided: what is new to whoever asks, not too much at once, and not too often."""

from farflung.mesh.chronicle import Chronicle
from farflung.mesh.config import ChronicleConfig
from farflung.mesh.messages import AskDecisions, Decision, Decisions
from farflung.wire.message import Refusal
from farflung.world.address import Address, PeerId
from farflung.world.effects import Send

ASKER = Address(PeerId("asker"), "dashboard")
KEPT = [Decision(number, 100.0 + number, "actor", f"decision {number}") for number in range(1, 8)]
LIFE = 50.0


def chronicle() -> Chronicle:
    config = ChronicleConfig(decisions_per_answer_max=3, answers_per_second=1.0, answers_at_once=2.0)
    return Chronicle(LIFE, lambda after: [kept for kept in KEPT if kept.number > after], config)


def answer(role: Chronicle, message: AskDecisions, now: float = 0.0, source: Address = ASKER) -> object:
    (effect,) = role.receive(source, message, now)
    assert isinstance(effect, Send) and effect.destination == source
    return effect.message


def test_only_what_is_new_is_told_and_of_much_the_newest() -> None:
    role = chronicle()
    assert answer(role, AskDecisions(life=LIFE, after=6)) == Decisions(life=LIFE, decisions=KEPT[6:])
    assert answer(role, AskDecisions()) == Decisions(life=LIFE, decisions=KEPT[4:])


def test_whoever_knows_an_earlier_life_is_told_of_this_one_from_its_beginning() -> None:
    told = answer(chronicle(), AskDecisions(life=LIFE - 1, after=100))
    assert told == Decisions(life=LIFE, decisions=KEPT[4:])


def test_a_peer_that_asks_too_often_is_refused_and_others_are_not() -> None:
    role = chronicle()
    for _ in range(2):
        assert isinstance(answer(role, AskDecisions()), Decisions)
    assert answer(role, AskDecisions()) == Refusal(
        reason="questions come faster than they are answered", retry_after_seconds=1.0
    )
    assert isinstance(answer(role, AskDecisions(), source=Address(PeerId("other"), "dashboard")), Decisions)
    assert isinstance(answer(role, AskDecisions(), now=1.0), Decisions)


def test_other_messages_are_passed_over() -> None:
    assert chronicle().receive(ASKER, Decisions(life=0.0, decisions=[]), 0.0) == ()
