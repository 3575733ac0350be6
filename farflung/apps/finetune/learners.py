"""What measures on a worker's seat: a learner for the data that the run is about, watched."""

import secrets
from collections.abc import Callable, Sequence
from typing import Any

from farflung.apps.finetune.accuracy import Score, score
from farflung.apps.finetune.materials import TuningMaterials, batches_of
from farflung.apps.finetune.rows import Batches
from farflung.apps.finetune.run_file import FinetuneRun
from farflung.apps.finetune.sharing import accountant_of
from farflung.apps.runs.part import Sitting
from farflung.systems.onebyte.header import Header
from farflung.systems.onebyte.learner import ModelLearner
from farflung.systems.onebyte.objective import Batch
from farflung.systems.onebyte.privacy import Budget
from farflung.systems.onebyte.private_learner import PrivateLearner
from farflung.systems.onebyte.steps import Step

BOTH_SIDES = 2
SPENT_KEY = "rounds of privacy spent"


class WatchedLearner:
    """A learner that counts what it does and, on one of the seats, scores the model now and then."""

    def __init__(self, learner: ModelLearner, model: Any, materials: TuningMaterials, *, is_scoring: bool) -> None:
        self._learner = learner
        self._model = model
        self._materials = materials
        run = materials.run
        self._is_exact = run.onebyte.is_exact
        self._every = run.training.evaluation_rounds
        self._held_out = materials.held_out.first(run.training.evaluation_examples) if is_scoring else None
        self._scored_round: int | None = None
        self.num_forwards = 0
        self.num_backwards = 0
        """Passes over a batch."""
        self.score: Score | None = None
        """The newest."""

    @property
    def epsilon(self) -> float | None:
        """Spent of a budget of privacy; None: there is none."""
        return self._learner.epsilon if isinstance(self._learner, PrivateLearner) else None

    def measure(self, round_number: int, first_slot: int, num_slots: int) -> bytes:
        """As a learner does."""
        if self._held_out is not None and self._is_due(round_number):
            self._scored_round = round_number
            self._learner.refresh()
            self.score = score(self._model, self._materials.task.objective, self._held_out)
        codes = self._learner.measure(round_number, first_slot, num_slots)
        self.num_forwards += 1 if self._is_exact else BOTH_SIDES * num_slots
        self.num_backwards += int(self._is_exact)
        return codes

    def _is_due(self, round_number: int) -> bool:
        return self._scored_round is None or round_number - self._scored_round >= self._every

    def add(self, steps: Sequence[Step]) -> None:
        """As a learner does."""
        self._learner.add(steps)

    def digest(self) -> bytes:
        """As a learner does."""
        return self._learner.digest()


def learner_of(sitting: Sitting[FinetuneRun], header: Header, materials: TuningMaterials, model: Any) -> ModelLearner:
    """What measures on this seat.

    Raises:
        ValueError: its data are too few for a batch, or nothing is installed that counts privacy.
    """
    if header.shared_slots is not None and header.shared_slots.privacy is not None:
        return _private_learner(sitting, header, materials, model)
    run = materials.run
    if not run.onebyte.shared_slots:
        return public_learner(header, materials, model)
    rows = materials.rows_of(sitting.seat)
    batches = Batches(rows, run.training.batch_size, f"{run.run.seed}:{sitting.seat.name}")
    return _learner(header, materials, model, batches)


def public_learner(header: Header, materials: TuningMaterials, model: Any) -> ModelLearner:
    """What measures on any seat of a run whose data are everybody's."""
    return _learner(header, materials, model, batches_of(materials.run, materials.task))


def _learner(header: Header, materials: TuningMaterials, model: Any, batches: Callable[[int], Batch]) -> ModelLearner:
    def on_device(round_number: int) -> Batch:
        return {name: tensor.to(model.device) for name, tensor in batches(round_number).items()}

    method = materials.run.onebyte
    return ModelLearner(
        header,
        model,
        materials.task.objective,
        on_device,
        num_directions=method.directions_per_pass,
        is_exact=method.is_exact,
    )


def _private_learner(
    sitting: Sitting[FinetuneRun], header: Header, materials: TuningMaterials, model: Any
) -> PrivateLearner:
    run, store, rows = sitting.run, sitting.world.store, materials.rows_of(sitting.seat)
    privacy, shared = run.onebyte.privacy, header.shared_slots
    assert privacy is not None and shared is not None and shared.privacy is not None
    accountant = accountant_of(privacy, shared.privacy.noise_multiplier, materials.workload(len(rows)))
    budget = Budget(
        accountant,
        privacy.epsilon,
        num_rounds=int(store.read(SPENT_KEY) or b"0"),
        keep=lambda num_rounds: store.write(SPENT_KEY, str(num_rounds).encode()),
    )
    # In a simulation everything repeats itself; elsewhere nobody may ever guess it.
    draw = secrets.randbelow if sitting.folder is not None else sitting.world.random("privacy").randrange
    return PrivateLearner(
        header,
        model,
        materials.task.objective,
        {name: tensor.to(model.device) for name, tensor in rows.batch(range(len(rows))).items()},
        run.training.batch_size,
        budget,
        draw,
        num_directions=run.onebyte.directions_per_pass,
    )
