"""Transfers that share pipes: pipes for themselves and the search over all of them move bytes in the same time."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farflung.sim.bandwidth import SharedBandwidth
from farflung.sim.loop import Outside, VirtualLoop
from farflung.sim.topology import Pipe

FAR = Pipe("far", 1e-3)
"""Crossed by a transfer that never ends within a test: all others are then found by the search."""
Ask = tuple[float, int, int, float | None]
"""(when it begins, pipe, bytes, after how many seconds it is stopped)."""


def ends(asked: Sequence[Ask], *, is_searched: bool) -> dict[int, float]:
    """When each transfer has ended; those that were stopped are left out."""
    loop = VirtualLoop()
    outside = Outside(loop)
    shared, found = SharedBandwidth(outside), dict[int, float]()

    def begin(number: int, pipe: int, num_bytes: int, stop_seconds: float | None) -> None:
        def end() -> None:
            found[number] = loop.time()

        transfer = shared.start([Pipe(pipe, 10.0 * (pipe + 1))], num_bytes, end)
        if stop_seconds is not None:
            loop.call_later(stop_seconds, shared.stop, transfer)

    if is_searched:
        shared.start([FAR, Pipe("farther", 1e-3)], 10**6, lambda: None)
    for number, (at, *rest) in enumerate(asked):
        loop.call_at(at, begin, number, *rest)
    loop.call_at(10_000.0, loop.stop)
    loop.run_forever()
    loop.close()
    return found


ASKED = st.lists(
    st.tuples(
        st.floats(0, 50), st.integers(0, 2), st.integers(1, 1000), st.none() | st.floats(0.1, 60, allow_nan=False)
    ),
    min_size=1,
    max_size=12,
)


@given(ASKED)
def test_pipes_for_themselves_and_the_search_agree(asked: list[Ask]) -> None:
    alone, searched = ends(asked, is_searched=False), ends(asked, is_searched=True)
    assert alone.keys() == searched.keys()
    for number, seconds in alone.items():
        assert seconds == pytest.approx(searched[number], abs=1e-6)


def test_transfers_of_a_pipe_share_it_and_go_on_when_another_way_begins() -> None:
    loop = VirtualLoop()
    shared, found = SharedBandwidth(Outside(loop)), list[tuple[str, float]]()

    def begin(name: str, pipes: list[Pipe], num_bytes: int) -> None:
        shared.start(pipes, num_bytes, lambda: found.append((name, loop.time())))

    near = Pipe("near", 10.0)
    loop.call_at(0.0, begin, "first", [near], 100)
    loop.call_at(0.0, begin, "second", [near], 50)  # both have 5 bytes a second
    loop.call_at(4.0, begin, "wide", [near, Pipe("other", 2.0)], 20)  # 2 of them; 4 each are left
    loop.call_at(60.0, begin, "alone", [near], 100)
    loop.call_at(100.0, loop.stop)
    loop.run_forever()
    loop.close()
    assert found == [
        ("second", pytest.approx(11.5)),
        ("wide", pytest.approx(14.0)),
        ("first", pytest.approx(17.0)),
        ("alone", pytest.approx(70.0)),
    ]


@pytest.mark.parametrize("is_searched", [False, True], ids=["alone", "searched"])
def test_transfers_end_where_the_clock_has_no_steps_as_small_as_what_is_left(*, is_searched: bool) -> None:
    late = 4e8  # seconds, of which a float knows the sixteen-millionth part
    loop = VirtualLoop()
    shared, found = SharedBandwidth(Outside(loop)), list[int]()
    ways = [Pipe("near", 1.3e9), *([Pipe("far", 1.7e9)] if is_searched else [])]

    def begin(number: int) -> None:
        shared.start(ways, 1000 + number, lambda: found.append(number))

    for number in range(50):
        loop.call_at(late + number / 7e7, begin, number)
    loop.call_at(late + 1.0, loop.stop)
    loop.run_forever()
    loop.close()
    assert sorted(found) == list(range(50))
