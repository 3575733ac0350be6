"""What the page *Chat* says of an answer: its route and what changed in it, its speed, silences, and what is asked."""

import pytest

from farflung.apps.dashboard.chat_view import AnswerView, Exchange, HopView, messages_of, moves
from farflung.world.address import PeerId

A, B, C = HopView(PeerId("a" * 52), 0, 2), HopView(PeerId("b" * 52), 2, 4), HopView(PeerId("c" * 52), 2, 4)


def test_a_route_that_changes_says_who_goes_on() -> None:
    assert moves((A, B), (A, C)) == ["bbbbbbbb (2:4) is gone; cccccccc (2:4) goes on"]
    assert moves((), (A, B)) == moves((A, B), (A, B)) == []


def test_an_answer_keeps_its_route_when_its_session_has_ended() -> None:
    answer = AnswerView()
    answer.follow((A, B))
    answer.follow(())
    answer.follow((A, C))
    assert answer.route == (A, C) and len(answer.incidents) == 1


def test_speed_counts_from_the_first_token_and_silence_is_told() -> None:
    answer = AnswerView()
    answer.take("one", 1, 10.0)
    assert answer.tokens_per_second is None
    answer.take("two", 2, 11.0)
    assert (answer.tokens_per_second, answer.incidents) == (2.0, [])
    answer.take("three", 1, 15.0)
    assert answer.tokens_per_second == pytest.approx(0.6)
    assert answer.incidents == ["4.0 s without a token"]
    answer.follow((A, B))
    assert answer.summary == "aaaaaaaa (0:2) → bbbbbbbb (2:4) · 4 tokens · 0.6 tokens/s"


def test_the_model_is_asked_with_all_that_was_said_before() -> None:
    exchanges = [Exchange("first?", AnswerView("one")), Exchange("second?", AnswerView("half an old answer"))]
    assert messages_of(exchanges) == [
        {"role": "user", "content": "first?"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "second?"},
    ]
