"""Private data in a run file: [method] shared_slots and its like, [method.privacy], and what the lead makes of them."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from msgspec import UNSET, UnsetType

from farflung.systems.onebyte.privacy import Accountant, noise_for
from farflung.systems.onebyte.sharing import MASKED_PARTICIPANTS_MIN, Privacy, SharedSlots

ANY_NOISE = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacySettings:
    """[method.privacy]: differential privacy of every single example."""

    clip: float = 0.3
    """An example's difference of losses counts at most so much: what nine in ten of a public batch stay below."""
    epsilon: float = 6.0
    """A worker's budget; it measures no round that would overdraw it."""
    delta: float = 1e-5
    """With which probability epsilon may fail: well below one over the number of examples."""
    noise_multiplier: float | None = None
    """Of the noise, in clips; None: as little as lets the budget pay for all rounds."""

    def __post_init__(self) -> None:
        if not self.epsilon > 0:
            raise ValueError(f"privacy.epsilon is {self.epsilon:g}; it must be above 0")
        if not 0 < self.delta < 1:
            raise ValueError(f"privacy.delta is {self.delta:g}; it is a probability: well below one over the examples")


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingSettings:
    """The part of [method] that is about data which nobody else may see."""

    shared_slots: bool = False
    """Everybody measures all slots of a round, on data of its own: --data of `farflung join`, or a share of [data]."""
    mean: Literal["mean", "trimmed"] = "mean"
    """Over the workers, of a slot: of all, or without the largest and smallest."""
    trim_percent: int = 25
    """Trimmed: the share of workers, rounded down, that is left out at either end."""
    participants_min: int | None = None
    """A slot that fewer have measured adds nothing; None: 1, and 3 with masks."""
    masked: bool = False
    """Entries travel under masks that cancel in the sum, which is all that anybody sees."""
    privacy: PrivacySettings | None = None

    def check_sharing(self) -> None:
        """Refuse what does not fit together.

        Raises:
            ValueError: says what.
        """
        if not self.shared_slots:
            usual = SharingSettings()
            for name in ("mean", "trim_percent", "participants_min", "masked", "privacy"):
                if getattr(self, name) != getattr(usual, name):
                    raise ValueError(f"{name} is about private data: set shared_slots = true")
        self.shared_with(ANY_NOISE)

    @property
    def num_needed(self) -> int:
        """Workers, for a round to count."""
        least = MASKED_PARTICIPANTS_MIN if self.masked else 1
        return least if self.participants_min is None else self.participants_min

    def shared_with(self, noise_multiplier: float) -> SharedSlots | UnsetType:
        """As the journal's header has it.

        Raises:
            ValueError: as `SharedSlots`.
        """
        if not self.shared_slots:
            return UNSET
        privacy = self.privacy and Privacy(clip=self.privacy.clip, noise_multiplier=noise_multiplier)
        return SharedSlots(
            mean=self.mean,
            trim_percent=self.trim_percent,
            participants_min=self.num_needed,
            is_masked=self.masked,
            privacy=privacy,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What decides how much noise a budget needs."""

    num_examples: int
    """Of the worker that has fewest, as far as the lead knows."""
    batch_size: int
    num_slots: int
    num_rounds: int

    @property
    def sample_rate(self) -> float:
        """With which probability an example is in a round's batch."""
        if self.batch_size > self.num_examples:
            raise ValueError(
                f"a batch of {self.batch_size} cannot be drawn from the {self.num_examples} examples of one worker: "
                f"set a smaller training.batch_size"
            )
        return self.batch_size / self.num_examples


@lru_cache(maxsize=8)
def noise_of(privacy: PrivacySettings, work: Workload) -> float:
    """The noise multiplier of a run.

    Raises:
        ValueError: no noise is enough, a batch is larger than the data, or nothing is installed that counts.
    """
    if privacy.noise_multiplier is not None:
        return privacy.noise_multiplier
    return noise_for(
        epsilon_max=privacy.epsilon,
        delta=privacy.delta,
        sample_rate=work.sample_rate,
        num_slots=work.num_slots,
        num_rounds=work.num_rounds,
    )


def accountant_of(privacy: PrivacySettings, noise_multiplier: float, work: Workload) -> Accountant:
    """Counts what a worker's rounds cost.

    Raises:
        ValueError: as `noise_of`.
    """
    return Accountant(
        noise_multiplier=noise_multiplier,
        sample_rate=work.sample_rate,
        num_slots=work.num_slots,
        delta=privacy.delta,
    )


def sharing_words(settings: SharingSettings, work: Workload, num_workers: int) -> list[str]:
    """What to say before such a run."""
    if not settings.shared_slots:
        return []
    words = [_privacy_words(settings.privacy, work)]
    if not settings.masked:
        words.append(
            "Every worker's bytes stand in the journal under its name: masked = true hides all but their sum, if there "
            f"are at least {MASKED_PARTICIPANTS_MIN} workers."
        )
    if num_workers < settings.num_needed:
        missing = settings.num_needed - num_workers
        words.append(f"A round needs {settings.num_needed} workers: it begins once {missing} more have joined.")
    return words


def _privacy_words(privacy: PrivacySettings | None, work: Workload) -> str:
    if privacy is None:
        return (
            "Bytes are measurements of a gradient on private data: whoever reads the journal can learn about single "
            "examples. [method.privacy] bounds how much."
        )
    noise = noise_of(privacy, work)
    num_paid = accountant_of(privacy, noise, work).num_rounds_within(privacy.epsilon)
    enough = "" if num_paid >= work.num_rounds else f", so that the run ends before its {work.num_rounds}"
    return (
        f"Privacy of every example: epsilon {privacy.epsilon:g} at delta {privacy.delta:g} pays for {num_paid} rounds "
        f"of {work.num_slots} slots with noise of {noise:.3g} clips of {privacy.clip:g}{enough}."
    )
