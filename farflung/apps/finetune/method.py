"""[method] of a fine-tuning run: what it does with its batches, and how machines agree on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from farflung.apps.finetune.baselines.settings import AdamSettings, FedAvgLoraSettings, MezoSettings
from farflung.apps.finetune.sharing import SharingSettings
from farflung.apps.finetune.swarm.settings import LoraSettings, PromptSettings
from farflung.apps.runs.form import Choice, NamedSection
from farflung.apps.runs.reader import check_known, read
from farflung.apps.runs.run import plain
from farflung.systems.onebyte.config import RoundsConfig

ONEBYTE = "onebyte"
AUDIT_SHARE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class OneByteSettings(SharingSettings):
    """[method] of name = "onebyte"."""

    num_slots: int = 64
    """Directions of a round; each is one byte of the journal."""
    learning_rate: float = 4e-2
    """How far weights move in a round along the mean direction, in units of the round's median measurement."""
    decay: Literal["constant", "linear"] = "constant"
    epsilon: float = 2e-3
    """How far each measurement goes along its direction; coarser types of numbers need a larger one."""
    direction: Literal["rank1", "rademacher", "gaussian"] = "rank1"
    exponent: int | None = None
    """K: weights move in steps of 2^-K; None: 24, or as near to it as the learning rate allows."""
    is_exact: bool = False
    """Measure by one backward pass a round instead of forward passes, where memory allows."""
    directions_per_pass: int = 16
    """Slots that a machine measures in one forward pass."""
    has_standby: bool = True
    """A second process keeps a copy of the journal and takes over when the sequencer dies, and a third decides."""
    quorum: float = 1.0
    """Share of a round's slots with which it closes at once."""
    round_seconds_max: float = 60.0
    """Deadline: then a round closes with what is there, if anything is."""
    staleness_rounds_max: int = 8
    """How many rounds late a byte may still count."""
    audit_share: float = AUDIT_SHARE
    """Share of slots that a second worker measures again; takes three workers."""
    entries_per_message: int = 128
    slots_per_lease_min: int = 32
    """Slots are given out in runs of at least so many, if there are enough for all."""
    reissue_seconds: float = 10.0
    """Slots that nobody has measured for so long are given to somebody else as well, or after twice the time that who
    holds them needs by its speed, if that is longer."""
    silence_seconds: float = 20.0
    """A sequencer that has said nothing for so long, although asked, is left for the next one."""
    absence_seconds: float = 10.0
    """A sequencer or standby that has shown nothing for so long is replaced, or gone on without."""

    def __post_init__(self) -> None:
        for name in ("num_slots", "directions_per_pass"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if not (self.learning_rate > 0 and self.epsilon > 0):
            raise ValueError("learning_rate and epsilon must be above 0")
        if self.staleness_rounds_max < 0:
            raise ValueError("staleness_rounds_max must not be negative")
        self.rounds_config(1)
        self.check_sharing()
        if self.shared_slots and self.audit_share != AUDIT_SHARE:
            raise ValueError(
                "audit_share has no effect on private data, which nobody else can measure again: leave it out; "
                "mean = 'trimmed' bounds what liars can do"
            )
        if self.privacy is not None and self.is_exact:
            raise ValueError(
                "is_exact measures a batch as a whole, and privacy clips what every example says: leave is_exact out"
            )

    def rounds_config(self, num_rounds: int) -> RoundsConfig:
        """What the machines of a run of so many rounds agree on."""
        return RoundsConfig(
            num_rounds=num_rounds,
            quorum=self.quorum,
            round_seconds_max=self.round_seconds_max,
            audit_share=self.audit_share,
            entries_per_message=self.entries_per_message,
            slots_per_lease_min=self.slots_per_lease_min,
            reissue_seconds=self.reissue_seconds,
            ask_again_seconds=min(5.0, self.silence_seconds / 4),
            silence_seconds=self.silence_seconds,
            beat_seconds=min(1.0, self.absence_seconds / 4),
            absence_seconds=self.absence_seconds,
        )


Method = OneByteSettings | MezoSettings | AdamSettings | FedAvgLoraSettings | LoraSettings | PromptSettings
METHODS: dict[str, type[Method]] = {
    ONEBYTE: OneByteSettings,
    "mezo": MezoSettings,
    "adam": AdamSettings,
    "fedavg-lora": FedAvgLoraSettings,
    "lora": LoraSettings,
    "prompt": PromptSettings,
}


def read_method(table: Mapping[str, Any]) -> Method:
    """The settings of the method that the table names.

    Raises:
        ValueError: there is no such method, or a mistake in its settings.
    """
    settings = dict(table)
    name = settings.pop("name", ONEBYTE)
    check_known(str(name), METHODS, "method", what="method")
    return read(METHODS[str(name)], settings, "method")


def name_in(table: object) -> object:
    """The method that an unread table names."""
    return table.get("name", ONEBYTE) if isinstance(table, Mapping) else ONEBYTE


def name_of(method: Method) -> str:
    """As a run file has it."""
    return next(name for name, kind in METHODS.items() if isinstance(method, kind))


METHOD_SECTION = NamedSection(
    read=read_method,
    table=lambda method: {"name": name_of(method), **plain(method)},
    choices=tuple(Choice(names=(name,), settings=settings) for name, settings in METHODS.items()),
    name_default=ONEBYTE,
)
