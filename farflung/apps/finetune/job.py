"""Fine-tuning as a kind of run."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console

from farflung.apps.finetune.charter import JOURNAL_FILE, RUN_KEY_FILE, Charter, kept_identity
from farflung.apps.finetune.engine import CANDIDATES, OneByteEngine, load_part
from farflung.apps.finetune.method import name_of
from farflung.apps.finetune.progress import LoneBar, RoundBars, gradient_bytes
from farflung.apps.finetune.run_file import FINETUNE, KIND, FinetuneRun
from farflung.apps.runs.engine import Engine
from farflung.apps.runs.history import History
from farflung.apps.runs.job import Bars, Ended, refuse_own_data
from farflung.apps.runs.seats import WORKER, Seat
from farflung.runtime.store import write_durably
from farflung.wire.identity import Identity

if TYPE_CHECKING:
    from farflung.apps.finetune.baseline import Baseline
    from farflung.apps.finetune.materials import TuningMaterials
    from farflung.apps.finetune.swarm.entry import Entry
    from farflung.apps.finetune.swarm.work import SwarmTuning
    from farflung.apps.runs.group import Group

AnyMaterials = Any
"""`TuningMaterials`, or of a run through a swarm `SwarmMaterials`."""


class Finetuning:
    """See `runs.job.Job`."""

    name = KIND
    form = FINETUNE
    budget = ("training", "rounds")

    def __init__(self, *, ticket: str | None = None, num_servers: int | None = None) -> None:
        """How a swarm is reached, where a run tunes through one: see `swarm.entry.Entry`."""
        self._ticket = ticket
        self._num_servers = num_servers

    @property
    def resume_options(self) -> str:
        """What the swarm is reached by; a ticket is never printed."""
        if self._num_servers is not None:
            return f" --servers {self._num_servers}"
        return "" if self._ticket is None else " --join TICKET"

    def check_longer(self, before: FinetuneRun, now: FinetuneRun, folder: Path) -> None:
        if now.is_swarm and now.swarm.decay != "constant":
            raise ValueError(
                f"the learning rate of the run in {folder} falls to nothing over {before.training.rounds} rounds "
                f'(method.decay): finish it with as many, or begin one with decay = "constant"'
            )
        if not now.is_onebyte:
            return
        num_rounds = before.training.rounds
        way_out = f"tune its model further in a run of its own, with model.path = {folder}/model"
        if (folder / JOURNAL_FILE).exists():
            raise ValueError(
                f"the journal in {folder} is closed after {num_rounds} rounds and takes no more: {way_out}"
            )
        if now.onebyte.decay == "linear":
            raise ValueError(
                f"the learning rate of the run in {folder} falls to nothing over {num_rounds} rounds (method.decay): "
                f"finish it with as many, then {way_out}"
            )
        if now.onebyte.privacy is not None and now.onebyte.privacy.noise_multiplier is None:
            raise ValueError(
                f"the noise of the run in {folder} was chosen for {num_rounds} rounds, as its journal says: finish it "
                f"with as many, then {way_out}"
            )

    def gather(self, run: FinetuneRun) -> "AnyMaterials":
        if run.is_swarm:
            from farflung.apps.finetune.swarm.materials import SwarmMaterials

            swarm_materials = SwarmMaterials.gather(run)
            self._entry.check(run, swarm_materials.source)
            return swarm_materials
        from farflung.apps.finetune.materials import TuningMaterials

        if self._ticket is not None or self._num_servers is not None:
            raise ValueError(
                f"--join and --servers are for tuning through a swarm (--method prompt or lora), and the method of "
                f"this run is {name_of(run.method)}; a run of onebyte is joined with `farflung join TICKET`"
            )

        materials = TuningMaterials.gather(run)
        if run.is_onebyte:
            materials.header(run.onebyte, bytes(32))
        else:
            from farflung.apps.finetune.baseline import check

            check(run, materials)
        return materials

    def gather_for(
        self, run: FinetuneRun, seat: Seat, group: "Group | None", own_data: Path | None
    ) -> "TuningMaterials | None":
        if group is not None:
            raise ValueError("a worker of a fine-tuning run is one process: leave out --ranks, and join several times")
        load_part(seat)
        if seat.kind != WORKER:
            return None
        if not run.onebyte.shared_slots:
            refuse_own_data(own_data)
        elif seat.is_remote and own_data is None:
            raise ValueError("everybody learns from data of its own in this run: join with --data FILE")
        import torch

        from farflung.apps.finetune.materials import TuningMaterials

        torch.set_num_threads(run.num_threads)
        return TuningMaterials.gather(run, own_data)

    def engine(self, run: FinetuneRun) -> "Engine[FinetuneRun, TuningMaterials]":
        return OneByteEngine()

    @property
    def _entry(self) -> "Entry":
        from farflung.apps.finetune.swarm.entry import Entry

        return Entry(ticket=self._ticket, num_servers=self._num_servers)

    def lone(self, run: FinetuneRun) -> "Baseline | SwarmTuning | None":
        if run.is_onebyte:
            return None
        if run.is_swarm:
            from farflung.apps.finetune.swarm.work import SwarmTuning

            return SwarmTuning(run, self._entry)
        from farflung.apps.finetune.baseline import Baseline

        return Baseline(run)

    def charter(self, run: FinetuneRun, materials: "TuningMaterials", seat: Seat, folder: Path | None) -> bytes:
        from farflung.systems.onebyte.header import encode_header

        if folder is None:
            identity = Identity(hashlib.sha256(f"{run.run.seed}:run".encode()).digest())
        else:
            identity = kept_identity(folder / RUN_KEY_FILE)
        header = materials.header(run.onebyte, identity.public_key)
        key = identity.private_key if seat.kind in CANDIDATES else b""
        return msgspec.msgpack.encode(Charter(header.run, encode_header(header), key))

    def summary(self, run: FinetuneRun, materials: "AnyMaterials") -> str:
        if run.is_swarm:
            from farflung.apps.finetune.swarm.words import opening_words as swarm_words

            return swarm_words(run, materials, self._entry)
        from farflung.apps.finetune.opening import opening_words

        what = f"{name_of(run.method)}: {materials.size[0]:,} parameters of {materials.name}"
        what = f"{what}, {run.training.rounds:,} rounds"
        if not run.is_onebyte:
            return f"{what} on this machine"
        line = (
            f"{what} of {run.onebyte.num_slots} bytes, {run.num_workers} workers in "
            f"{', '.join(region.name for region in run.regions)}"
        )
        return "\n".join([*opening_words(run, materials), line])

    def bars(
        self, run: FinetuneRun, materials: "AnyMaterials", history: History, seats: Sequence[Seat], console: Console
    ) -> Bars:
        if not run.is_onebyte:
            rows_per_round = run.training.batch_size if run.is_swarm else None
            return LoneBar(history, run.training.rounds, console, rows_per_round=rows_per_round)
        num_tuned, num_bytes = materials.size
        return RoundBars(
            history,
            run.training.rounds,
            lambda rounds, workers: gradient_bytes(num_tuned, num_bytes, rounds, workers),
            console,
        )

    def keep(self, folder: Path, result: bytes) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(folder / JOURNAL_FILE, result)

    def kept(self, folder: Path) -> bytes:
        return (folder / JOURNAL_FILE).read_bytes()

    def leave(self, ended: "Ended[FinetuneRun, AnyMaterials]", console: Console) -> None:
        if ended.run.is_swarm:
            from farflung.apps.finetune.swarm.words import leave as leave_swarm

            leave_swarm(ended, console)
            return
        from farflung.apps.finetune.leave import leave, leave_baseline

        (leave if ended.run.is_onebyte else leave_baseline)(ended, console)
