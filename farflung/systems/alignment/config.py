"""What one can set on the conversation between rollout nodes and the trainer; what computes has settings of its own.

Sequential is `staleness_max` 0 of the same code: a batch is sampled with exactly the weights that the last step made.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsConfig:
    """How versions of the weights are cut, told and fetched."""

    chunk_bytes: int = 1 << 20
    """What is hashed, asked for and fetched again at worst."""
    values_per_piece: int = 1 << 18
    """Each run of so many values is encoded the way that is smallest for it."""
    versions_kept: int = 64
    """Deltas that the trainer keeps; who holds something older fetches an anchor."""
    chunks_at_once: int = 4
    """Asked for and not yet here."""
    chunk_seconds_max: float = 30.0
    """A source that has given nothing for so long is not waited for: its chunks are asked from somebody else."""
    fetch_seconds_max: float = 600.0
    """When nothing has come for so long, a version is given up, the old one stays, and the hub is told."""
    canary_tolerance: float = 1e-3
    """By how much log-probabilities may differ after weights were installed; depends on the dtype."""

    def __post_init__(self) -> None:
        for name in ("chunk_bytes", "values_per_piece", "versions_kept", "chunks_at_once"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("chunk_seconds_max", "fetch_seconds_max", "canary_tolerance"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishConfig:
    """When the trainer publishes its weights."""

    steps_per_version: int = 1
    """A version at least every so many steps."""
    drift_budget: float = 0.0
    """Above 0: adaptive. Publish once the drift since the last version times the answers that are still being sampled
    with it exceeds this; `steps_per_version` is then the longest wait."""

    def __post_init__(self) -> None:
        if self.steps_per_version < 1:
            raise ValueError(f"steps_per_version is {self.steps_per_version}; it must be at least 1")
        if self.drift_budget < 0:
            raise ValueError(f"drift_budget is {self.drift_budget}; it must be at least 0, where 0 means fixed periods")


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignmentConfig:
    """A run's conversation."""

    num_steps: int
    """Optimizer steps after which the run is over."""
    prompts_per_step: int = 16
    """B: groups in a batch."""
    answers_per_prompt: int = 8
    """G: members of a group."""
    answers_per_prompt_min: int = 0
    """Groups of so many are trained on after `group_seconds_max`; 0: none is ever lost, so wait for all."""
    num_tokens_max: int = 64
    """Of one answer."""
    staleness_max: int = 1
    """S: no token is trained on that was sampled with weights more than so many steps old; 0: Sequential."""
    seed: int = 0
    lease_seconds: float = 120.0
    """An answer that nobody has spoken of for so long goes to somebody else."""
    hedge_factor: float = 3.0
    """When nothing else is left to give, an answer that takes so many times the usual goes to a second node."""
    group_seconds_max: float = 600.0
    """What is missing of a group then is lost, if `answers_per_prompt_min` are there."""
    failures_max: int = 3
    """A prompt that so many tasks failed with is given up and named."""
    false_answers_max: int = 16
    """Whoever sends more that name other prompts, weights or versions than there are is banned: it would be asked for
    the same answers for ever."""
    ask_again_seconds: float = 2.0
    """How often a worker with room asks, and one without says what it is at."""
    silence_seconds: float = 15.0
    """A question or a batch without an answer for so long is sent again."""
    wait_seconds_max: float = 1800.0
    """A trainer that has got no batch for so long stops and says why."""
    audit_share: float = 0.0
    """Share of the answers that are checked against the weights that they name, before they are trained on."""
    steps_per_checkpoint: int = 10
    publish: PublishConfig = PublishConfig()
    weights: WeightsConfig = WeightsConfig()

    def __post_init__(self) -> None:
        for name in ("num_steps", "prompts_per_step", "answers_per_prompt", "num_tokens_max", "failures_max"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.steps_per_checkpoint < 1:
            raise ValueError(f"steps_per_checkpoint is {self.steps_per_checkpoint}; it must be at least 1")
        if self.staleness_max < 0:
            raise ValueError(f"staleness_max is {self.staleness_max}; it must be at least 0, which is Sequential")
        if self.weights.versions_kept <= self.staleness_max:
            raise ValueError(
                f"versions_kept is {self.weights.versions_kept}; it must be above staleness_max, {self.staleness_max}"
            )
        if self.publish.steps_per_version > self.staleness_max + 1:
            raise ValueError(
                f"with steps_per_version {self.publish.steps_per_version} all answers are older than staleness_max "
                f"{self.staleness_max} allows: publish at least every {self.staleness_max + 1} steps"
            )
        if not 0 <= self.answers_per_prompt_min <= self.answers_per_prompt:
            raise ValueError(
                f"answers_per_prompt_min is {self.answers_per_prompt_min}; it is at most answers_per_prompt, "
                f"{self.answers_per_prompt}"
            )
        if not 0 <= self.audit_share <= 1:
            raise ValueError(f"audit_share is {self.audit_share}; it is a share between 0 and 1")
        for name in self.__slots__:
            if name.endswith(("_seconds", "_seconds_max", "_factor")) and not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
