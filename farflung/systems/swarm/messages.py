"""What clients and block servers of a swarm say to each other.

A *session* is one attention cache spread over a chain of servers. Its history is a log of steps, numbered from 1 and
the same for every span of the chain: edits of the cache (reorder, truncate), then new positions. `base` is the step a
server must have applied already, `upto` the step it has applied afterwards; base 0 means "start afresh". Servers answer
duplicates from what they computed before, so a client may always ask again.

    client --Step--> server 1 --Step--> server 2 --Output--> client        the critical path
                        \\--Output--> client                                the copy that lets spans be replayed
    client --Step in the background--> standby of a server --StandingBy--> client       several steps at once, later
"""

import msgspec

from farflung.wire.message import Message
from farflung.wire.tensor import WireTensor
from farflung.world.address import Address, PeerId

ACTOR = "swarm"
"""Actor name of every block server."""


class Hop(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Blocks [first, last) on one server."""

    peer: PeerId
    first: int
    last: int


class Truncate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Forget the positions from `length` on (rollback)."""

    length: int


class Reorder(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Row i of the batch becomes what row `rows[i]` was (beam search; may change the batch size)."""

    rows: tuple[int, ...]


Edit = Truncate | Reorder


class Install(Message, kw_only=True):
    """The owner of a server to it: compute with these weights. Once all parts are here they are put in place, between
    two computations, and sessions with the weights before are over."""

    model: str
    """What steps of sessions with these weights say in `Step.model`."""
    part: int
    num_parts: int
    tensors: dict[str, WireTensor]
    """By block and name within it; what is not named stays as it is."""


class Installed(Message, kw_only=True):
    """That part is here; with the last one: all are in place."""

    model: str
    part: int
    reason: str
    """Why not, if it is not."""


class HandAdapter(Message, kw_only=True):
    """Client to a server that lacks it: the part of an adapter for blocks [first, last), all of which it holds."""

    adapter: str
    """Its name, which is a hash of `digests`."""
    digests: tuple[bytes, ...]
    """Of the factors of each of the model's blocks."""
    first: int
    last: int
    factors: dict[str, WireTensor]
    """By block, layer and letter, as in `3.mlp.up_proj.lora_A`: [rank, features in] and, scaled, [features out, rank].
    A block whose layers are not adapted has none."""
    is_passing: bool = False
    """It is about to be replaced by its next version: the client's older ones may go."""


class AdapterHanded(Message, kw_only=True):
    """Answer to HandAdapter: that part is here, or why not."""

    adapter: str
    first: int
    last: int
    reason: str = ""
    is_fault_of_client: bool = False


class Attach(Message, kw_only=True):
    """Client to each server of its chain: I hold a link to you; outputs of my session can come back over it."""

    session: str


class Step(Message, kw_only=True):
    """Apply one step of a session's log on the first hop of `route`, then push the result to the next hop."""

    session: str
    """Name that only the client and its servers know."""
    model: str
    """Fingerprint of the weights."""
    route: tuple[Hop, ...]
    client: Address
    base: int
    upto: int
    edits: tuple[Edit, ...] = ()
    hidden: WireTensor
    """[batch, new positions, hidden size]"""
    position_ids: WireTensor | None = None
    """[batch, new positions]; None: they count on from the cache's length."""
    attention_mask: WireTensor | None = None
    """[batch, new positions], 0 where a position is padding; None: no padding."""
    prompts: WireTensor | None = None
    """Deep prompts of all the model's blocks, [blocks, prompt length, hidden size]; only with base 0."""
    adapter: str = ""
    """Name of the session's adapter, the same in all its steps; empty: none."""
    num_tokens_max: int
    """Positions times batch that the session may grow to; more than the server's cache can hold is refused."""
    codec: str = "raw"
    """How outputs are to be encoded."""
    is_background: bool = False
    """Only keep up, when there is nothing else to do: the answer is StandingBy, and nothing is pushed on."""


class Output(Message, kw_only=True):
    """Server to client: the hidden states that step `upto` gave after block `last - 1`."""

    session: str
    first: int
    last: int
    base: int
    """As in the Step: 0 means that `hidden` covers all positions of the cache, not only the newest."""
    upto: int
    hidden: WireTensor
    compute_seconds: float = 0.0
    queue_seconds: float = 0.0


class Behind(Message, kw_only=True):
    """Server to client: I cannot start from `base`; I have applied `applied` (0: nothing)."""

    session: str
    first: int
    last: int
    upto: int
    applied: int


class Working(Message, kw_only=True):
    """Server to client: that step waits or runs here; keep waiting."""

    session: str
    first: int
    last: int
    upto: int


class StandingBy(Message, kw_only=True):
    """Server to client: your session could go on here from step `upto`. Who does not want that closes it."""

    session: str
    first: int
    last: int
    upto: int


class SessionRefused(Message, kw_only=True):
    """Server to client: no, and why (full, moving, wrong model, impossible shapes)."""

    session: str
    first: int
    last: int
    upto: int
    reason: str
    retry_after_seconds: float = 0.0
    is_fault_of_client: bool = False
    """The request itself is wrong: no other server would take it either."""
    wants_adapter: bool = False
    """It would take it if it had the adapter: hand it over and ask again."""


class PushFailed(Message, kw_only=True):
    """Server to client: I could not hand your session's hidden states on to `next_peer`."""

    session: str
    next_peer: PeerId
    reason: str


class CloseSession(Message, kw_only=True):
    """Client to server: free the cache of this session."""

    session: str


class Forward(Message, kw_only=True):
    """Stateless forward through blocks [first, last), for tuning and scoring."""

    request: str
    model: str
    first: int
    last: int
    hidden: WireTensor
    position_ids: WireTensor | None = None
    attention_mask: WireTensor | None = None
    prompts: WireTensor | None = None
    """Deep prompts of these blocks only, [last - first, prompt length, hidden size]."""
    adapter: str = ""
    """Name of an adapter; empty: none."""
    is_kept: bool = False
    """Gradients will be asked for: what they need may be kept for a while."""
    wants_factors_gradient: bool = False
    """Whether those by the adapter's factors are among them."""
    codec: str = "raw"


class Backward(Message, kw_only=True):
    """Gradients of the inputs of a Forward: the server back-propagates through what it kept of it, or recomputes it."""

    request: str
    model: str
    first: int
    last: int
    hidden: WireTensor
    gradient: WireTensor
    """Gradient of the loss by the span's output, same shape as `hidden`."""
    position_ids: WireTensor | None = None
    attention_mask: WireTensor | None = None
    prompts: WireTensor | None = None
    adapter: str = ""
    wants_factors_gradient: bool = False
    """Whether gradients by the adapter's factors are to come back too."""
    forward: str = ""
    """Name of that Forward, if this server computed it."""
    codec: str = "raw"


class ForwardDone(Message, kw_only=True):
    """Answer to Forward."""

    request: str
    hidden: WireTensor


class BackwardDone(Message, kw_only=True):
    """Answer to Backward."""

    request: str
    gradient: WireTensor
    """By the span's input."""
    prompts_gradient: WireTensor | None = None
    """By the span's deep prompts, [last - first, prompt length, hidden size]."""
    factors_gradient: dict[str, WireTensor] | None = None
    """By the adapter's factors of these blocks, named and scaled as in HandAdapter."""


class RequestRefused(Message, kw_only=True):
    """Answer to Forward or Backward: no, and why."""

    request: str
    reason: str
    retry_after_seconds: float = 0.0
    is_fault_of_client: bool = False
    wants_adapter: bool = False
