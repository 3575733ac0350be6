"""A fine-tuning run as seats: who orders the journal, who may take over, who decides between them, and measurers."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from farflung.apps.finetune.run_file import FinetuneRun
from farflung.apps.runs.part import Part, Sitting
from farflung.apps.runs.seats import WORKER, Seat, worker_seats
from farflung.systems.onebyte.config import Group

if TYPE_CHECKING:
    from farflung.apps.finetune.materials import TuningMaterials

SEQUENCER, STANDBY, WITNESS = "sequencer", "standby", "witness"
CANDIDATES = (SEQUENCER, STANDBY)


def group_of(sitting: Sitting[FinetuneRun]) -> Group:
    """Who may order the journal, and who decides."""
    found = {seat.kind: sitting.peers[seat.index] for seat in sitting.seats if seat.kind != WORKER}
    candidates = tuple(found[kind] for kind in CANDIDATES if kind in found)
    return Group(candidates=candidates, witness=found.get(WITNESS))


def load_part(seat: Seat) -> "Callable[[Sitting[FinetuneRun], TuningMaterials | None], Part]":
    """What sits on a seat. Each kind loads what it needs, and no more: a witness has no use for torch."""
    if seat.kind == WITNESS:
        from farflung.apps.finetune.witness import WitnessPart

        return lambda sitting, _: WitnessPart(sitting)
    if seat.kind in CANDIDATES:
        from farflung.apps.finetune.candidate import CandidatePart

        return lambda sitting, _: CandidatePart(sitting)
    from farflung.apps.finetune.worker import worker_part

    return worker_part


def _server_seat(run: FinetuneRun, index: int, kind: str) -> Seat:
    """Where a region names it; else where the lead can start it again, as it must come back under its name."""
    named = [region for region in run.regions if kind in region.servers]
    regions = [region for region in run.regions if not region.is_remote]
    if named or not regions:
        region = (named or run.regions)[0]
        return Seat(index=index, kind=kind, region=region.name, is_remote=bool(named) and region.is_remote)
    return Seat(index=index, kind=kind, region=regions[index % len(regions)].name)


class OneByteEngine:
    """See `runs.engine.Engine`."""

    def seats(self, run: FinetuneRun) -> list[Seat]:
        kinds = (SEQUENCER, STANDBY, WITNESS) if run.onebyte.has_standby else (SEQUENCER,)
        servers = [_server_seat(run, index, kind) for index, kind in enumerate(kinds)]
        return [*servers, *worker_seats(run.regions, len(servers))]

    def needs(self, seat: Seat, seats: tuple[Seat, ...]) -> list[int]:
        return [other.index for other in seats if other.kind != WORKER and other != seat]

    def part(self, sitting: Sitting[FinetuneRun], materials: "TuningMaterials | None") -> Part:
        return load_part(sitting.seat)(sitting, materials)

    def result_seats(self, seats: tuple[Seat, ...]) -> list[Seat]:
        return [seat for seat in seats if seat.kind in CANDIDATES]

    def prepare_resume(self, homes: dict[int, Path], seats: tuple[Seat, ...]) -> bool:
        """What was told is on the candidates' disks, and workers take up the journal from there."""
        kept = [homes[seat.index] / "journals" for seat in seats if seat.kind in CANDIDATES and seat.index in homes]
        return any(any(folder.glob("*.db")) for folder in kept)
