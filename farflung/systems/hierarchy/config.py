"""What one can set on a tree of parameter servers; the names in brackets are the paper's."""

import hashlib
import json
from dataclasses import asdict, dataclass

from farflung.learn.rules import DelayedNesterov

ABSOLUTE_CODECS = ("raw", "fp16", "bf16")
"""Codecs that a model may travel in as it is;"""
CODECS = (*ABSOLUTE_CODECS, "int8", "int4", "int2")
"""in the others it travels as its difference to the one before."""
AUTO = "auto"
"""Codec of updates that is chosen by the link's measured bandwidth."""
FIRST_CODEC = "bf16"
"""Of a model that cannot travel as a difference, because its receiver has none or has lost it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HierarchyConfig:
    """One run; servers and workers refuse each other unless all of it is equal."""

    budget_steps: int
    """Worker steps after which the run is over, counted where the tree has its root."""
    num_local_steps: int = 8
    """Steps (H) of the fastest worker between two updates."""
    is_speed_scaled: bool = True
    """Slower workers do fewer steps: max(1, ceil(H speed / greatest speed))."""
    speed_max: float = 0.0
    """Steps per second of the fastest worker, if known beforehand; 0: as measured."""
    local_learning_rate: float = 0.2
    """By how much of its delta an update moves a local server's model (eta_l)."""
    local_momentum: float = 0.9
    """beta_l"""
    local_delay: int = 16
    """Updates per change of a local server's momentum (d_l)."""
    global_learning_rate: float = 0.15
    """eta_g"""
    global_momentum: float = 0.5
    """beta_g"""
    global_delay: int = 2
    """d_g"""
    merge_weight: float = 0.25
    """Share (alpha) of the global model in a local server's model after a merge."""
    updates_per_push: int = 32
    """Updates (K) after a merge at which a local server pushes upward."""
    codec_up_local: str = "raw"
    """Codec of updates from a worker to its local server; the lossy ones carry their error to the next update. `auto`:
    the most exact one that the link's measured bandwidth has time for."""
    codec_down_local: str = "raw"
    """Codec of models from a local server to its workers; below 16 bits their differences travel."""
    codec_up_global: str = "raw"
    """The same from a local server to the global one (also `auto`),"""
    codec_down_global: str = "raw"
    """and back."""
    wire_share_max: float = 0.1
    """Where a codec is `auto`: share of the time from one update to the next that it may spend on the wire."""
    num_shards: int = 0
    """Shards of the data, dealt to workers; 0: workers look after their data themselves."""
    values_per_part: int = 1 << 21
    """Models and updates travel in parts of so many values: 8 MiB of float32."""
    num_parts_ahead: int = 4
    """Parts that are sent before the first of them is known to have arrived."""
    updates_per_snapshot: int = 64
    """Updates between two saved states of a server; a restart replays those since the last one."""
    replay_bytes_max: int = 16 << 30
    """Disk for updates that a restart would replay; once they are more, a state is saved though it is not due."""
    resident_bytes_max: int = 128 << 20
    """Models on their way to clients are kept in memory up to this size together, and on disk above it."""
    ask_again_seconds: float = 5.0
    """Silence after which the other side is asked what it has; doubles with each question."""
    ask_again_seconds_max: float = 60.0
    lease_seconds: float = 30.0
    """A worker that cannot be reached for so long loses its shard to whoever joins."""
    alive_seconds: float = 10.0
    """How often a worker that computes shows that it is there."""

    def __post_init__(self) -> None:
        _check_counts(self)
        _check_rates(self)
        for name in ("codec_up_local", "codec_up_global", "codec_down_local", "codec_down_global"):
            known = (*CODECS, AUTO) if "up" in name.split("_") else CODECS
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(known)}")
        if not 0 < self.wire_share_max <= 1:
            raise ValueError(f"wire_share_max is a share above 0 and at most 1, not {self.wire_share_max}")

    @property
    def local_rule(self) -> DelayedNesterov:
        """The local servers' rule: eta N is its rate, so that an update moves the model by eta of its delta."""
        return DelayedNesterov(
            learning_rate=self.local_learning_rate * self.local_delay,
            momentum=self.local_momentum,
            num_delay=self.local_delay,
        )

    @property
    def global_rule(self) -> DelayedNesterov:
        """The global server's rule."""
        return DelayedNesterov(
            learning_rate=self.global_learning_rate * self.global_delay,
            momentum=self.global_momentum,
            num_delay=self.global_delay,
        )

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of all settings."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).digest()


def _check_counts(config: HierarchyConfig) -> None:
    for name in (
        "budget_steps",
        "num_local_steps",
        "local_delay",
        "global_delay",
        "updates_per_push",
        "num_parts_ahead",
        "updates_per_snapshot",
        "replay_bytes_max",
    ):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be at least 1")
    for name in ("ask_again_seconds", "ask_again_seconds_max", "lease_seconds", "alive_seconds"):
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be above 0 seconds")
    if config.num_shards < 0:
        raise ValueError("num_shards is below 0; use 0 if workers look after their data themselves")


def _check_rates(config: HierarchyConfig) -> None:
    for name in ("local_learning_rate", "global_learning_rate"):
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} is {getattr(config, name)}; a learning rate must be above 0")
    for name in ("local_momentum", "global_momentum"):
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; a momentum must be at least 0 and below 1")
    if not 0 <= config.merge_weight <= 1:
        raise ValueError(f"merge_weight is {config.merge_weight}; it is a share between 0 and 1")
