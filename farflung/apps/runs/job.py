"""A kind of run: what `farflung pretrain`, `farflung finetune` and their like differ in.

A run of any kind is led by one process, which gives out seats (`lead`), starts those of its own machine (`local`) or of
a simulation (`simulated`) and keeps the log (`session`). Who takes a seat (`take_seat`) hears of which kind the run is:

    lead    job.form ── gather ── engine.seats ────────────────────────── bars ··· leave
    seat    SeatGiven(job, run, charter) ── gather_for ── engine.part ── sit ── keep
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from rich.console import Console

from farflung.apps.runs.engine import Engine
from farflung.apps.runs.form import RunForm
from farflung.apps.runs.history import History
from farflung.apps.runs.run import Run
from farflung.apps.runs.seats import Seat

if TYPE_CHECKING:
    from farflung.apps.runs.group import Group
    from farflung.apps.runs.lone import LoneWork


class Bars(AbstractContextManager["Bars"], Protocol):
    """How a run fares, on the terminal, while it is entered."""

    def show(self) -> None:
        """Bring it up to date."""
        ...


class Materials(Protocol):
    """What a run starts from: data and a model, gathered on every machine by itself."""

    @property
    def fingerprint(self) -> str:
        """Equal where they are equal; whoever has others must not take part."""
        ...


AnyRun = TypeVar("AnyRun", bound=Run)
AnyMaterials = TypeVar("AnyMaterials", bound=Materials)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended(Generic[AnyRun, AnyMaterials]):
    """A run that has come to its end, on its lead."""

    run: AnyRun
    materials: AnyMaterials
    folder: Path
    history: History
    counters: dict[str, dict[str, int]]
    """By seat and name."""
    result: Any
    """What the part of a seat has told as its result."""
    time_name: str
    """What kind of seconds the history counts in."""


class Job(Protocol[AnyRun, AnyMaterials]):
    """A kind of run."""

    @property
    def name(self) -> str:
        """In `run.kind`, and on the command line."""
        ...

    @property
    def budget(self) -> tuple[str, str]:
        """Section and key of how long the run is; a resumed run may have more of it."""
        ...

    @property
    def resume_options(self) -> str:
        """What the command line needs beside --resume to go on, with a space before it; "": nothing."""
        ...

    @property
    def form(self) -> RunForm[AnyRun]:
        """Its run file."""
        ...

    def check_longer(self, before: AnyRun, now: AnyRun, folder: Path) -> None:
        """Whether the run in `folder` can have a larger budget than it was begun with.

        Raises:
            ValueError: it cannot.
        """
        ...

    def gather(self, run: AnyRun) -> AnyMaterials:
        """On the lead: load everything, and try what seats will do.

        Raises:
            ValueError: something is missing, or does not fit the rest.
        """
        ...

    def gather_for(self, run: AnyRun, seat: Seat, group: "Group | None", own_data: Path | None) -> AnyMaterials | None:
        """For a seat that is taken here, by one process or by a group; None: it needs none.

        `own_data`: a file that nobody else has, to be learned from here.

        Raises:
            ValueError: as `gather`, a group cannot sit there, or everybody learns from the same data.
        """
        ...

    def engine(self, run: AnyRun) -> Engine[AnyRun, AnyMaterials]:
        """The system that does it."""
        ...

    def lone(self, run: AnyRun) -> "LoneWork[AnyRun, AnyMaterials] | None":
        """What does this run in the process of the command; None: an engine does, with seats that anybody may take."""
        ...

    def charter(self, run: AnyRun, materials: AnyMaterials, seat: Seat, folder: Path | None) -> bytes:
        """What the lead tells that seat alone beyond the run file, such as a key; b"": nothing.

        `folder`: where the lead may keep what must be the same when the run is resumed; None: in a simulation.
        """
        ...

    def summary(self, run: AnyRun, materials: AnyMaterials) -> str:
        """One sentence before it begins."""
        ...

    def bars(
        self, run: AnyRun, materials: AnyMaterials, history: History, seats: Sequence[Seat], console: Console
    ) -> Bars:
        """What the lead shows."""
        ...

    def keep(self, folder: Path, result: Any) -> None:
        """Where a seat leaves what it has told as the run's result, for the lead."""
        ...

    def kept(self, folder: Path) -> Any:
        """What a seat has left there.

        Raises:
            ValueError: nothing, or something damaged.
        """
        ...

    def leave(self, ended: Ended[AnyRun, AnyMaterials], console: Console) -> None:
        """Write what the user gets at the end, and say where it lies."""
        ...


AnyJob = Job[Any, Any]
KINDS = ("pretrain", "align", "finetune")
"""Names that `job_of` knows."""


def refuse_own_data(own_data: Path | None) -> None:
    """For kinds of runs in which everybody learns from what the run file names.

    Raises:
        ValueError: somebody has brought a file.
    """
    if own_data is not None:
        raise ValueError("everybody learns from the same data in this run: leave out --data")


def form_of(name: str) -> RunForm[Any]:
    """The run file of runs of that name, without what does them: reading one loads no torch.

    Raises:
        ValueError: as `job_of`.
    """
    match name:
        case "pretrain":
            from farflung.apps.pretrain.run_file import PRETRAIN

            return PRETRAIN
        case "align":
            from farflung.apps.align.run_file import ALIGN

            return ALIGN
        case "finetune":
            from farflung.apps.finetune.run_file import FINETUNE

            return FINETUNE
        case _:
            raise _unknown(name)


def job_of(name: str, **options: Any) -> AnyJob:
    """The kind of run of that name, with what its command alone is told; the others are not loaded.

    Raises:
        ValueError: this version knows none.
    """
    match name:
        case "pretrain":
            from farflung.apps.pretrain.job import Pretraining

            return Pretraining()
        case "align":
            from farflung.apps.align.job import Alignment

            return Alignment()
        case "finetune":
            from farflung.apps.finetune.job import Finetuning

            return Finetuning(**options)
        case _:
            raise _unknown(name)


def _unknown(name: str) -> ValueError:
    return ValueError(f"this version of farflung knows no runs of the kind {name!r}: install that of the lead")
