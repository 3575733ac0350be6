"""What workers and servers of a tree say to each other; a local server is to the global one what a worker is to it.

    client --Join----------------> server      who I am, what I run, what I have not heard about
           <-Welcome--------------             a lease, a shard, where its data go on
           <-ModelPart------------             the model, a few parts ahead of
           --Fetch--------------->             what has arrived
           --UpdatePart---------->             an update, a few parts ahead of
           <-PartTaken------------             what has arrived
           <-UpdateTaken----------             it is durable and will be applied once; a ModelPart follows

Either side may fall silent, die or be sent a message twice. A client asks again with a number (`ask`); its answer
travels behind whatever was sent before it, so that what has not come by then is lost and is sent again.
"""

import msgspec

from farflung.wire.message import Message

ACTOR = "hierarchy"
"""Actor name of every server."""


class RunIdentity(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What both ends of a link must have in common."""

    code: str
    """Version of the program."""
    config: bytes
    """Fingerprint of the settings."""
    layout: bytes
    """Fingerprint of the model's names and shapes."""


class UpdateHeader(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What an update says beside its tensors."""

    num_parts: int
    num_steps: int
    """Worker steps in it."""
    num_tokens: int
    base_version: int
    """Version of the model that the work began from."""
    base_dispatch: int
    """Number under which that model was sent: the client holds it, and can be sent a difference to it."""
    loss: float
    """Mean over its steps."""
    speed: float
    """Steps per second of the worker (of the fastest one below a local server)."""
    shard: int
    """Of the data, from which its samples came; -1: none."""
    cursor: dict[str, int]
    """Where that shard goes on after this update."""


class ModelHeader(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a model says beside its tensors."""

    num_parts: int
    sequence: int
    """The client's update that it answers; 0: its first model."""
    version: int
    """Updates that the server has applied to it."""
    num_local_steps: int
    """Steps to make from it (for workers)."""
    global_steps: int
    """Worker steps of the whole run so far, as far as the server knows: the position in schedules."""
    speed_max: float
    """Steps per second of the fastest worker known; 0: none is."""
    is_over: bool
    """The budget is spent: this is the last model."""
    reference: int
    """The parts are differences to the model that was sent under this number; 0: they are the model."""


class Join(Message, kw_only=True):
    """Client to server: let me take part."""

    name: str
    """Of the client, the same in all its lives."""
    run: RunIdentity
    instance: str
    """Different in each life and at each joining, so that a repeated message is known."""
    lease: int = 0
    """The last lease that it held; 0: none that it remembers."""
    sequence: int = 0
    """Its newest update under that lease, whose fate it does not know; 0: none."""
    known_version: int = 0
    """Version of the newest model it got."""
    speed: float = 0.0
    """Steps per second; 0: not known yet."""


class Welcome(Message, kw_only=True):
    """Server to client: you hold a lease."""

    name: str
    instance: str
    lease: int
    """Names updates together with their sequence, which only grows."""
    newest: int
    """Number of the newest update that is durable here, under the lease that the Join told of or a later one; 0: there
    is none. Do not send it, or one before it, again."""
    shard: int
    """Of the data; -1: none, look after your data yourself."""
    cursor: dict[str, int]
    """Where the shard goes on; empty: at its beginning."""
    global_steps: int


class UpdatePart(Message, kw_only=True):
    """Client to server: one part of an update."""

    name: str
    lease: int
    sequence: int
    index: int
    header: UpdateHeader
    digest: bytes
    """SHA-256 of `slices`."""
    slices: memoryview
    """Encoded `wire.parts.TensorSlice`s of start minus end."""


class PartTaken(Message, kw_only=True):
    """Server to client: this is the first part of that update that is not here."""

    name: str
    lease: int
    sequence: int
    next: int
    ask: int = 0


class UpdateTaken(Message, kw_only=True):
    """Server to client: that update is durable, and it is applied once."""

    name: str
    lease: int
    sequence: int


class WhereIs(Message, kw_only=True):
    """Client to server: which part of that update do you want next?"""

    name: str
    lease: int
    sequence: int
    ask: int


class Fetch(Message, kw_only=True):
    """Client to server: this is the first part of the model that is not here."""

    name: str
    lease: int
    sequence: int
    """The newest update that was taken."""
    dispatch: int
    """Number of the model that is being received; 0: none yet."""
    next: int
    ask: int = 0
    """Not 0: say what you have sent."""
    is_lost: bool = False
    """What was sent of it from `next` on has not come: send it again."""


class Sent(Message, kw_only=True):
    """Server to client: of that model (0: none yet), parts before `upto` were sent before this."""

    name: str
    lease: int
    sequence: int
    dispatch: int
    upto: int
    ask: int


class ModelPart(Message, kw_only=True):
    """Server to client: one part of the model as it was at one moment."""

    name: str
    lease: int
    dispatch: int
    index: int
    header: ModelHeader
    digest: bytes
    slices: memoryview


class Alive(Message, kw_only=True):
    """Client to server: I am still computing."""

    name: str
    lease: int


class LeaseEnded(Message, kw_only=True):
    """Server to client: that lease is not yours any more; join again."""

    name: str
    lease: int
    reason: str
