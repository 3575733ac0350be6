"""Views and the witness: one successor each, from a member, and remembered over restarts."""

import pytest

from farflung.sim.simulation import Simulation
from farflung.systems.onebyte.messages import BytePropose, ByteViewIs, View
from farflung.systems.onebyte.views import Witness, decode_view, encode_view, first_view, follows
from farflung.world.address import Address, PeerId
from farflung.world.effects import Save, Send

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")
BOTH = View(5, A, (B,))


@pytest.mark.parametrize(
    ("proposed", "proposer", "is_right"),
    [
        (View(6, A, ()), A, True),
        (View(6, A, (B, C)), A, True),
        (View(6, B, ()), B, True),
        (View(6, B, (C,)), B, False),
        (View(6, A, ()), B, False),
        (View(6, C, ()), C, False),
        (View(7, A, ()), A, False),
        (View(5, A, ()), A, False),
    ],
)
def test_who_may_follow_whom(proposed: View, proposer: str, is_right: bool) -> None:
    assert follows(BOTH, proposed, proposer) is is_right


def test_a_witness_keeps_a_view_before_it_says_so_and_refuses_a_second_successor() -> None:
    witness = Witness("key", BOTH)
    effects = witness.receive(Address(B, "1b"), BytePropose(view=View(6, B, ())), 0.0)
    kept, told = effects[0], effects[-1]
    assert isinstance(kept, Save) and decode_view(kept.value) == View(6, B, ())
    assert isinstance(told, Send) and told.message == ByteViewIs(view=View(6, B, ()))
    again = witness.receive(Address(A, "1b"), BytePropose(view=View(6, A, ())), 0.0)
    assert again == [Send(Address(A, "1b"), ByteViewIs(view=View(6, B, ())))]


def test_a_restarted_witness_knows_what_it_accepted() -> None:
    with Simulation() as simulation:
        world = simulation.node("witness")
        first = Witness.open(world, [A, B], bytes(16))
        assert first.view == first_view([A, B]) == View(1, A, ())
        for effect in first.receive(Address(A, "1b"), BytePropose(view=View(2, A, (B,))), 0.0):
            if isinstance(effect, Save):
                world.store.write(effect.key, effect.value)
        simulation.crash("witness")
        simulation.restart("witness")
        assert Witness.open(simulation.world("witness"), [A, B], bytes(16)).view == View(2, A, (B,))


def test_views_read_back() -> None:
    assert decode_view(encode_view(BOTH)) == BOTH and decode_view(encode_view(None)) is None is decode_view(None)
