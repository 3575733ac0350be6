"""What one can set on a block server and on a client's sessions."""

from dataclasses import dataclass

from farflung.systems.swarm.checks import Limits
from farflung.world.address import PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """What a block server promises."""

    model: str
    """Fingerprint of the weights."""
    model_name: str
    """Name people use."""
    limits: Limits
    cache_tokens_max: int
    """Tokens of attention cache over all its blocks."""
    blocks_per_second: float
    """Measured: blocks one token passes per second when decoding."""
    forward_tokens_per_second: float
    """Measured: tokens per second through one block in a long forward."""
    version: str
    """Software version, announced."""
    started_at: float
    """Wall-clock seconds."""
    num_model_blocks: int = 0
    """Blocks of the whole model, announced; 0: not told."""
    owner: PeerId | None = None
    """Who may give it other weights; None: nobody."""
    adapter_bytes_max: int = 256 << 20
    """Memory for clients' adapters; those used longest ago give way."""
    num_jobs_max: int = 1024
    """Steps that may wait for the device."""
    batch_sessions_max: int = 64
    """Sessions that are computed together at most; 1: one after another."""
    batch_seconds_max: float = 0.25
    """What a batch may take, as far as the measured rate of long forwards says: prompts are cut into such chunks."""
    standby_seconds_max: float = 0.05
    """What a computation for standbys may take, likewise: who comes meanwhile waits for it."""
    linger_seconds_max: float = 0.05
    """A session of which it is less certain when it will be back with its next step is never waited for."""
    ask_seconds: float = 30.0
    """Of a session that is not used for so long the client is asked, again and again, whether it still wants it."""
    idle_seconds_max: float = 1800.0
    """A session that is not used for so long is freed."""
    kept_bytes_max: int = 1 << 29
    """Of forward passes that are kept until their gradients are asked for; those that find no room are recomputed."""
    kept_seconds_max: float = 60.0
    """A forward pass whose gradients nobody asks for is kept so long."""
    orphan_seconds_max: float = 10.0
    """A session whose client cannot be reached for so long is freed."""

    def __post_init__(self) -> None:
        if self.cache_tokens_max < 1:
            raise ValueError("A server needs a cache of at least one token: free some memory or serve fewer blocks.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionConfig:
    """How patient a session is, and how it sends."""

    ask_again_seconds: float = 5.0
    """Without an answer for so long (and the time the bytes may need), ask the server again."""
    num_asks_max: int = 3
    """A server that leaves so many questions unanswered is replaced."""
    step_seconds_max: float = 300.0
    """A server that keeps saying it works on one step for so long is replaced."""
    wait_seconds_max: float = 60.0
    """How long to wait for blocks that no reachable server holds."""
    ban_seconds: float = 15.0
    """How long a server that failed is avoided."""
    codec: str = "raw"
    """Codec of hidden states on the wire; only raw is exact."""
    piece_positions: int = 256
    """A longer prompt travels in steps of so many positions, one right after the other, so that every server of a chain
    computes while the next one does, and while more is on its way; a multiple of a page, for prefixes' sake."""
    is_push_wanted: bool = True
    """Let servers hand hidden states on directly."""
    is_hop_per_block: bool = False
    """One hop per block, so that the hidden states after every block come back."""
    micro_batch_tokens_max: int = 1024
    """A batch without a cache travels in pieces of whole rows of so many tokens, all at the same time."""
    is_standby_wanted: bool = False
    """Let another holder of each server's blocks keep up with it, so that after a loss only what is newest is computed
    again."""
    standby_num_positions: int = 16
    """A standby is sent what is new once there are so many positions of it."""
    standby_seconds_max: float = 30.0
    """A standby that gets no further for so long is given up."""
