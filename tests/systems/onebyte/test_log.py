"""A candidate's copy of the journal: what is cut stays cut, and where two copies part ways."""

from hypothesis import given
from hypothesis import strategies as st

from farflung.systems.onebyte.log import Log
from farflung.world.effects import Append
from tests.onebytes import header_of


def stored(effects: list[Append]) -> list[bytes]:
    return [effect.record for effect in effects]


def test_a_log_reads_back_with_its_cuts() -> None:
    log, disk = Log(header_of()), list[bytes]()
    disk += stored(log.append([b"a", b"b", b"c"]))
    disk += stored(log.cut(1))
    disk += stored(log.append([b"d"]))
    again = Log.open(header_of(), disk)
    assert again.contents == [b"a", b"d"] and again.hash == log.hash
    assert again.hash_after(1) == log.hash_after(1) != log.hash_after(2)


@given(st.lists(st.binary(max_size=3), max_size=40), st.lists(st.binary(max_size=3), max_size=40), st.integers(0, 40))
def test_logs_agree_on_what_they_have_in_common_and_never_on_more(
    mine: list[bytes], other: list[bytes], num_common: int
) -> None:
    common = mine[:num_common]
    one, two = Log(header_of()), Log(header_of())
    one.append(mine)
    two.append([*common, b"other", *other])
    agreed = two.agreement(one.marks())
    assert agreed is not None and one.hash_after(agreed) == two.hash_after(agreed)
    assert mine[:agreed] == two.contents[:agreed]


def test_a_journal_of_another_run_agrees_on_nothing() -> None:
    one, two = Log(header_of(num_slots=16)), Log(header_of(num_slots=32))
    assert two.agreement(one.marks()) is None


def test_pieces_are_limited_and_never_empty() -> None:
    log = Log(header_of())
    log.append([bytes(10), bytes(10), bytes(50), bytes(10)])
    assert [len(each) for each in log.piece(0, 4, 25)] == [10, 10]
    assert [len(each) for each in log.piece(2, 4, 25)] == [50]
    assert log.piece(4, 4, 25) == ()
