"""When a worker asks: one question at a time, and at once about what its answer cannot know."""

from farflung.systems.alignment.asking import NEVER, Asking


def test_one_question_at_a_time_and_again_after_a_silence() -> None:
    asking = Asking(silence_seconds=5.0)
    assert asking.due_at == NEVER
    number = asking.ask(10.0)
    assert asking.due_at == 15.0 and asking.is_awaited(number) and not asking.is_awaited(number - 1)
    asking.answered(12.0, retry_after_seconds=3.0)
    assert asking.due_at == 15.0 and not asking.is_awaited(number) and asking.round_trip_seconds == 2.0


def test_news_while_a_question_is_out_is_asked_about_when_it_was_answered() -> None:
    asking = Asking(silence_seconds=5.0)
    asking.ask(10.0)
    asking.soon()
    assert asking.due_at == 15.0
    asking.answered(12.0, retry_after_seconds=3.0)
    assert asking.due_at == NEVER
    asking.ask(12.0)
    asking.answered(13.0, retry_after_seconds=3.0)
    assert asking.due_at == 16.0


def test_a_question_that_is_of_no_use_is_asked_anew() -> None:
    asking = Asking(silence_seconds=5.0)
    number = asking.ask(10.0)
    asking.anew()
    assert asking.due_at == NEVER and not asking.is_awaited(number)
    assert asking.ask(11.0) == number + 1
