"""The one byte counter: sums by peer, kind and direction."""

from hypothesis import given
from hypothesis import strategies as st

from farflung.world.address import PeerId
from farflung.world.doors import TrafficMeter

COUNTS = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from(["Step", "Output"]), st.booleans(), st.integers(0, 1 << 40))
)


@given(COUNTS, st.sampled_from([None, "a", "b"]), st.sampled_from([None, "Step"]), st.sampled_from([None, True, False]))
def test_totals_are_sums_over_what_was_counted(
    counts: list[tuple[str, str, bool, int]], peer: str | None, kind: str | None, sent: bool | None
) -> None:
    meter = TrafficMeter()
    for of_peer, of_kind, was_sent, num_bytes in counts:
        meter.count(PeerId(of_peer), of_kind, sent=was_sent, num_bytes=num_bytes)
    expected = sum(
        num_bytes
        for of_peer, of_kind, was_sent, num_bytes in counts
        if peer in (None, of_peer) and kind in (None, of_kind) and sent in (None, was_sent)
    )
    assert meter.total(peer=None if peer is None else PeerId(peer), kind=kind, sent=sent) == expected
    assert sum(meter.num_messages.values()) == len(counts)
