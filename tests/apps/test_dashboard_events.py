"""What the page *Events* gathers from nodes: nothing twice, lives apart, in order of time, and by words."""

from farflung.apps.dashboard.events_view import KEPT_MAX, Gathered, shown
from farflung.mesh.messages import AskDecisions, Decision, Decisions
from farflung.world.address import PeerId

A, B = PeerId("a" * 52), PeerId("b" * 52)


def told(life: float, *decisions: tuple[int, float, str]) -> Decisions:
    return Decisions(life=life, decisions=[Decision(number, at, "serve", text) for number, at, text in decisions])


def test_a_node_is_asked_for_what_is_not_known_yet() -> None:
    gathered = Gathered()
    assert gathered.question(A) == AskDecisions()
    gathered.take(A, told(5.0, (3, 10.0, "one"), (4, 11.0, "two")))
    assert gathered.question(A) == AskDecisions(life=5.0, after=4)
    gathered.take(A, told(5.0, (4, 11.0, "two"), (5, 12.0, "three")))  # a late answer to an earlier question
    assert [event.sentence for event in gathered.events] == ["one", "two", "three"]


def test_another_life_counts_anew() -> None:
    gathered = Gathered()
    gathered.take(A, told(5.0, (9, 10.0, "old")))
    gathered.take(A, told(6.0, (1, 20.0, "new")))
    assert [event.sentence for event in gathered.events] == ["old", "new"]
    assert gathered.question(A) == AskDecisions(life=6.0, after=1)


def test_events_of_all_nodes_are_in_order_of_time_and_limited() -> None:
    gathered = Gathered()
    gathered.take(A, told(1.0, (1, 10.0, "first"), (2, 30.0, "third")))
    gathered.take(B, told(1.0, (1, 20.0, "second")))
    assert [event.sentence for event in gathered.events] == ["first", "second", "third"]
    gathered.take(B, told(1.0, *((number, 100.0 + number, "more") for number in range(2, KEPT_MAX + 2))))
    assert len(gathered.events) == KEPT_MAX and gathered.events[0].sentence == "more"


def test_words_choose_by_node_site_actor_and_sentence() -> None:
    gathered = Gathered()
    gathered.take(A, told(1.0, (1, 10.0, "takes blocks 0:2: few hold them")))
    gathered.take(B, told(1.0, (1, 20.0, "loads blocks 2:4")))
    sites = {A: "east", B: "west"}
    assert [(event.peer, site) for event, site in shown(gathered.events, "", sites)] == [(B, "west"), (A, "east")]
    assert [event.peer for event, _ in shown(gathered.events, "EAST takes", sites)] == [A]
    assert [event.peer for event, _ in shown(gathered.events, "bbbb", sites)] == [B]
    assert shown(gathered.events, "east loads", sites) == ()
