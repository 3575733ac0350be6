"""Who orders the journal: views, one after another, each agreed with a witness (pure, and the witness's role).

A record is committed when the sequencer and all standbys of its view hold it. A view is followed by one that the
witness has accepted, and it accepts one successor of each, from a member of it. So of a sequencer and a standby that
cannot hear each other at most one goes on, whatever their clocks say, and it holds all that was ever committed.
"""

from collections.abc import Sequence

import msgspec

from farflung.systems.onebyte.messages import BytePropose, ByteViewIs, View
from farflung.world.address import Address, PeerId
from farflung.world.doors import World
from farflung.world.effects import Effect, Note, Save, Send
from farflung.world.role import Role


def first_view(candidates: Sequence[PeerId]) -> View:
    """The view in which a run begins: no standby holds anything yet."""
    return View(1, candidates[0], ())


def members(view: View) -> tuple[str, ...]:
    """Those who hold everything that was committed in a view."""
    return (view.sequencer, *view.standbys)


def follows(view: View, proposed: View, proposer: str) -> bool:
    """Whether a member of `view` may make `proposed` its successor."""
    return (
        proposed.epoch == view.epoch + 1
        and proposed.sequencer == proposer
        and proposer in members(view)
        and (proposer == view.sequencer or not proposed.standbys)
    )


def encode_view(view: View | None) -> bytes:
    """Bytes for the store."""
    return msgspec.msgpack.encode(view)


def decode_view(content: bytes | None) -> View | None:
    """What `encode_view` wrote; None for nothing."""
    return None if content is None else msgspec.msgpack.decode(content, type=View | None)


class Witness(Role):
    """Remembers the newest view of a run. It needs no journal."""

    def __init__(self, key: str, view: View) -> None:
        self._key = key
        self.view = view

    @classmethod
    def open(cls, world: World, candidates: Sequence[PeerId], run: bytes) -> "Witness":
        """As the store has it, or at a run's beginning."""
        key = f"onebyte-witness-{run.hex()}"
        return cls(key, decode_view(world.store.read(key)) or first_view(candidates))

    def receive(self, source: Address, message: object, now: float) -> Sequence[Effect]:
        """Accept a successor, and say in any case which view it is."""
        match message:
            case BytePropose(view=view) if follows(self.view, view, source.peer):
                self.view = view
                kept = [Save(self._key, encode_view(view)), Note(f"view {view.epoch}: {view.sequencer} orders")]
                return [*kept, Send(source, ByteViewIs(view=view))]
            case BytePropose():
                return [Send(source, ByteViewIs(view=self.view))]
            case _:
                return []
