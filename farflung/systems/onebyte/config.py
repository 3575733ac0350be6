"""What one can set on the conversation between measurers and sequencers; what decides the weights is in the header."""

from dataclasses import dataclass

from farflung.world.address import PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsConfig:
    """How rounds are shared out, closed, checked and signed."""

    num_rounds: int
    """Rounds after which the run is closed."""
    quorum: float = 1.0
    """Share of a round's slots with which it closes at once."""
    round_seconds_max: float = 60.0
    """Deadline: then a round closes with what is there, if anything is."""
    entries_per_message: int = 128
    """Entries that a measurer sends at once; fewer only at the end of what it was given."""
    slots_per_lease_min: int = 32
    """Slots are given out in runs of at least so many, if there are enough for all."""
    reissue_seconds: float = 10.0
    """Slots that nobody has measured for so long are given to somebody else as well, or after twice the time that who
    holds them needs by its speed, if that is longer."""
    audit_share: float = 0.02
    """Share of slots that somebody else measures again."""
    audit_octaves: float = 1.0
    """By how much two measurements of a slot may differ; of large ones the sign must agree too."""
    disagreements_max: int = 3
    """Refuted entries after which a measurer is banned and what it contributed is subtracted."""
    rounds_per_seal: int = 16
    """Rounds between two signatures of a measurer."""
    seal_seconds_max: float = 30.0
    """How long the end of a run waits for signatures before the sequencer vouches for what has none."""
    ask_again_seconds: float = 5.0
    """Silence after which a measurer asks what it is to do; doubles with each question."""
    ask_again_seconds_max: float = 60.0
    silence_seconds: float = 20.0
    """A sequencer that has said nothing for so long, although asked, is left for the next one."""
    beat_seconds: float = 1.0
    """How often the sequencer and its standbys show each other that they are there."""
    absence_seconds: float = 10.0
    """A sequencer or standby that has shown nothing for so long is replaced, or gone on without."""
    catch_up_bytes: int = 1 << 16
    """Records are told to newcomers and standbys in pieces of so many bytes."""

    def __post_init__(self) -> None:
        for name in ("num_rounds", "entries_per_message", "slots_per_lease_min", "disagreements_max"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("rounds_per_seal", "catch_up_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.quorum <= 1:
            raise ValueError(f"quorum is {self.quorum}; it is a share above 0 and at most 1")
        if not 0 <= self.audit_share <= 1:
            raise ValueError(f"audit_share is {self.audit_share}; it is a share between 0 and 1")
        for name in self.__slots__:
            if name.endswith(("_seconds", "_seconds_max")) and not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0 seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Who may order a run's journal."""

    candidates: tuple[PeerId, ...]
    """The first begins as sequencer; the others follow it, and one of them takes over when it is gone."""
    witness: PeerId | None = None
    """Who decides which candidate is right when they cannot hear each other; needed with more than one."""

    def __post_init__(self) -> None:
        if not self.candidates or len(set(self.candidates)) < len(self.candidates):
            raise ValueError("a run needs a sequencer, and each candidate is named once")
        if len(self.candidates) > 1 and self.witness is None:
            raise ValueError(
                "a standby needs a witness, so that two cannot take themselves for the sequencer: name a third "
                "machine, or the standby itself (then nobody can go on without it)"
            )
