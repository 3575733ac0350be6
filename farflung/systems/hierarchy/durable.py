"""What a server keeps on its disk, and how a restart finds it.

hierarchy/manifest                         the newest saved state: its number, the ledger, the counters
hierarchy/state/N/PART                     its tensors
hierarchy/update/NAME/LEASE/SEQUENCE/PART  updates that are not in it yet
hierarchy/model/PUSH/PART                  models of the server above that are not merged in it yet
hierarchy/push/NUMBER/PART                 what is on its way to the server above
hierarchy/snapshot/PUSH/PART               the own model after that answer was merged: what the next push begins at
hierarchy/owed/NUMBER/PART                 what the codec left out of a push
hierarchy/above/PUSH/PART                  the model that answered a push, where models travel as differences
hierarchy/reference/NAME/PART              what a client holds, for large models; worthless after a restart
hierarchy/dispatch/NUMBER/PART             large models on their way to clients; worthless after a restart
journal "hierarchy"                        records, in the order in which they are applied
"""

from dataclasses import dataclass

import msgspec

from farflung.systems.hierarchy.ledger import Ledger
from farflung.systems.hierarchy.messages import UpdateHeader
from farflung.systems.hierarchy.records import JOURNAL, Record, decode_record
from farflung.world.doors import World

PREFIX = "hierarchy/"
MANIFEST = f"{PREFIX}manifest"


class Counters(msgspec.Struct, forbid_unknown_fields=True):
    """What the updates applied so far have come to; part of the state that replaying the journal rebuilds."""

    applied: int = 0
    """Number of the newest record that is applied."""
    version: int = 0
    """Updates applied (ver)."""
    num_steps: int = 0
    num_tokens: int = 0
    loss_sum: float = 0.0
    """Loss times steps, since the last push."""
    staleness: dict[int, int] = {}
    """How many updates arrived so many versions after the model that they began from."""
    rule_step: int = 0
    merged_version: int = 0
    """Version at the last merge (merged_ver)."""
    num_pushes: int = 0
    num_merges: int = 0
    merged_push: int = 0
    """Newest push whose answer is merged."""
    has_model: bool = False
    """The server above has sent the first model."""
    pushed_steps: int = 0
    """Steps that were told upward."""
    pushed_tokens: int = 0
    merged_steps: int = 0
    """Of those, the ones that the server above had counted at the last merge."""
    push_header: UpdateHeader | None = None
    """Of the newest push."""
    above_version: int = 0
    """Version of the server above at the last merge."""
    above_dispatch: int = 0
    """Number under which its model came that was merged last."""
    above_steps: int = 0
    """Its steps then."""
    above_speed_max: float = 0.0
    codec_push: str = "raw"
    """Of the next push."""
    is_over: bool = False


class Manifest(msgspec.Struct, forbid_unknown_fields=True):
    """The newest saved state."""

    number: int
    layout: bytes
    ledger: Ledger
    counters: Counters
    lease: int
    """Held with the server above; 0: none."""


def update_key(name: str, lease: int, sequence: int, index: int) -> str:
    """Where a part of a client's update lies."""
    return f"{PREFIX}update/{name}/{lease}/{sequence}/{index}"


def model_key(push: int, index: int) -> str:
    """Where a part of the model that answered a push lies."""
    return f"{PREFIX}model/{push}/{index}"


def push_key(number: int, index: int) -> str:
    """Where a part of a push lies."""
    return f"{PREFIX}push/{number}/{index}"


def state_key(number: int, index: int) -> str:
    """Where a part of a saved state lies."""
    return f"{PREFIX}state/{number}/{index}"


def snapshot_key(push: int, index: int) -> str:
    """Where a part of the own model lies, as it was once the model that answered a push had been merged."""
    return f"{PREFIX}snapshot/{push}/{index}"


def owed_key(number: int, index: int) -> str:
    """Where a part of what the codec left out of a push lies."""
    return f"{PREFIX}owed/{number}/{index}"


def above_key(push: int, index: int) -> str:
    """Where a part of the model lies that answered a push, whole again."""
    return f"{PREFIX}above/{push}/{index}"


def reference_key(name: str, index: int) -> str:
    """Where a part of the model lies that a client holds."""
    return f"{PREFIX}reference/{name}/{index}"


def dispatch_key(dispatch: int, index: int) -> str:
    """Where a part of a large model on its way to a client lies."""
    return f"{PREFIX}dispatch/{dispatch}/{index}"


@dataclass(frozen=True, slots=True)
class Kept:
    """What a server finds when it starts."""

    manifest: Manifest | None
    records: tuple[Record, ...]
    """All that are in the journal, in order; the oldest may be in the manifest already."""
    keys: tuple[str, ...]
    """All of its values in the store."""

    @classmethod
    def read(cls, world: World) -> "Kept":
        """Look on the disk of this node.

        Raises:
            ValueError: what lies there was not written by this program.
        """
        data = world.store.read(MANIFEST)
        try:
            manifest = None if data is None else msgspec.msgpack.decode(data, type=Manifest)
            records = tuple(decode_record(record) for record in world.journal(JOURNAL).records())
        except msgspec.MsgspecError as error:
            raise ValueError(
                f"the saved state of this server is damaged ({error}): restore it, or start in an empty home"
            ) from None
        return cls(manifest, records, tuple(world.store.keys(PREFIX)))
