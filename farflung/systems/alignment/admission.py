"""The first gate: whether an answer that arrives may be kept, and why not."""

from typing import Literal, NamedTuple

from farflung.systems.alignment.chain import Chain
from farflung.systems.alignment.config import AlignmentConfig
from farflung.systems.alignment.ledger import Ledger
from farflung.systems.alignment.protocols import Environment
from farflung.systems.alignment.rollouts import Rollout, fault_of


class NotKept(NamedTuple):
    """Why an answer is of no use."""

    kind: Literal["late", "stale", "false"]
    """The first two happen to honest workers, whose answers were hedged or who were away; the third to none that has
    this run's tokens and weights."""
    reason: str


class Admission:
    """Everything about an answer that can be checked without computing."""

    def __init__(self, config: AlignmentConfig, ledger: Ledger, chain: Chain, environment: Environment) -> None:
        self._config = config
        self._ledger = ledger
        self._chain = chain
        self._environment = environment

    def why_not(self, rollout: Rollout) -> NotKept | None:
        """Why this answer is of no use; None: it is wanted, and nothing about it is wrong."""
        if not 0 <= rollout.member < self._config.answers_per_prompt:
            return NotKept("false", f"a group has no member {rollout.member}")
        if self._ledger.is_closed(rollout.prompt):
            return NotKept("late", "its prompt is closed")
        if not self._ledger.is_wanted(rollout.key):
            return NotKept("late", "it is here already")
        if rollout.prompt not in self._ledger.open_prompts():
            return NotKept("false", f"nobody was asked for prompt {rollout.prompt}")
        fault = fault_of(rollout, num_tokens_max=self._config.num_tokens_max) or self._why_other(rollout)
        if fault is not None:
            return NotKept("false", fault)
        if self._ledger.is_stale(rollout):
            return NotKept("stale", self._why_stale(rollout))
        unpublished = self._why_unpublished(rollout)
        return None if unpublished is None else NotKept("false", unpublished)

    def _why_other(self, rollout: Rollout) -> str | None:
        if rollout.prompt_tokens != self._environment.prompt(rollout.prompt) or rollout.seed != self._config.seed:
            return f"it answers another prompt {rollout.prompt} than this run has: tokenizers or seeds differ"
        version = rollout.versions[-1]
        if version > self._chain.newest:
            return f"there is no version {version} yet"
        # Of versions so old that their hash is forgotten only the staleness matters.
        published = self._chain.hash_of(version)
        if published is not None and published != rollout.weights_hash:
            return f"its weights are not those of version {version}"
        return None

    def _why_unpublished(self, rollout: Rollout) -> str | None:
        """Of versions young enough to be trained on all that were published are remembered; see `Chain`."""
        unknown = [version for version in dict.fromkeys(rollout.versions) if self._chain.hash_of(version) is None]
        return f"there is no version {unknown[0]}: it was never published" if unknown else None

    def _why_stale(self, rollout: Rollout) -> str:
        self._ledger.state.num_stale += 1
        return f"version {rollout.version_min} is too old, {self._ledger.version_min} is the oldest that is trained on"
