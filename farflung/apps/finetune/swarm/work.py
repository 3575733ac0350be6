"""Tuning through a swarm as a run: it joins, trains in the process of the command, and keeps how far it has come."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from farflung.apps.finetune.accuracy import score
from farflung.apps.finetune.baselines.plan import Kept
from farflung.apps.finetune.run_file import FinetuneRun
from farflung.apps.finetune.swarm.entry import Entry
from farflung.apps.finetune.swarm.materials import SwarmMaterials
from farflung.apps.finetune.swarm.model import TunedModel
from farflung.apps.finetune.swarm.own import begin_own
from farflung.apps.finetune.swarm.saving import write_result
from farflung.apps.finetune.swarm.tuning import Steps, tune
from farflung.apps.finetune.watch import STATE_FILE, Stopped, TunedAlone, Watch, read_kept
from farflung.apps.library import ConnectedModel
from farflung.apps.runs.messages import SeatReport
from farflung.apps.runs.seats import WORKER, Seat
from farflung.world.errors import FarflungError


class SwarmTuning:
    """See `runs.lone.LoneWork`."""

    def __init__(self, run: FinetuneRun, entry: Entry) -> None:
        self.seat = Seat(index=0, kind=WORKER, region=run.regions[0].name)
        self._entry = entry
        self._kept: Kept | None = None

    def prepare(self, folder: Path, run: FinetuneRun, *, is_resumed: bool) -> bool:
        path = folder / STATE_FILE
        self._kept = read_kept(path) if is_resumed and path.exists() else None
        return self._kept is not None

    def work(
        self,
        run: FinetuneRun,
        materials: SwarmMaterials,
        folder: Path,
        tell: Callable[[SeatReport], object],
        is_stopping: Callable[[], bool],
    ) -> TunedAlone | None:
        with self._entry.connected(run, materials.source, folder, Console().print) as connected:
            own = begin_own(run, materials.source, materials.task, connected.model)
            model = TunedModel(connected.model, own)
            before = score(model, materials.task.objective, materials.held_out)
            watch = Watch(run, materials.task, materials.held_out, folder, self._kept, tell, is_stopping)
            watch.begin(before)
            steps = Steps(
                num_rounds=run.training.rounds, batch_size=run.training.batch_size, seed=f"{run.run.seed}:data"
            )
            try:
                tune(
                    model,
                    materials.task,
                    steps,
                    run.swarm,
                    watch.hear,
                    self._kept,
                    num_bytes=lambda: _num_bytes(connected),
                )
            except Stopped:
                return None
            except FarflungError:  # nobody holds some blocks any more: what was learned is kept
                watch.keep()
                raise
            after = score(model, materials.task.objective, materials.held_out)
        write_result(folder, run, materials, own)
        assert watch.last is not None, "a run has rounds"
        return TunedAlone(model, before, after, watch.last)


def _num_bytes(connected: ConnectedModel) -> int:
    """Sent and received until now."""
    return connected.connection.bridge.call(connected.connection.node.world.traffic.total)
