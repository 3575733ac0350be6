"""One tuning by one byte per measurement, whole: measurers in the simulator, their journal, a replay on a fresh model.

Beside it the same measurements in floats, one machine: same directions, batches, clipping and scale, nothing rounded.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import torch

from bench.onebyte_runs import RUN_KEY, SimulatedRun, journal_of
from farflung.apps.finetune.labelled import TuningTask
from farflung.learn.parameters import fingerprint
from farflung.systems.onebyte.code import COEFFICIENT_MAX, COEFFICIENT_UNIT
from farflung.systems.onebyte.config import RoundsConfig
from farflung.systems.onebyte.directions import draw_directions
from farflung.systems.onebyte.header import Header, schedule_of
from farflung.systems.onebyte.journal import read_journal
from farflung.systems.onebyte.learner import ModelLearner
from farflung.systems.onebyte.measure import Measurer
from farflung.systems.onebyte.objective import Batch
from farflung.systems.onebyte.records import Round
from farflung.systems.onebyte.replay import replay
from farflung.systems.onebyte.tensors import choose_tensors, chosen_parameters

EXPONENT = 24
MACHINES = 3

Load = Callable[[], Any]
"""Gives the base model, a fresh one at each call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How a run tunes."""

    num_slots: int
    num_rounds: int
    rate: float
    """Of the first round; it falls in a straight line to nothing."""
    batch_size: int
    epsilon: float = 2e-3
    is_exact: bool = False
    """Projections from one backward pass in place of forward passes."""
    tensors: tuple[str, ...] = ("all",)
    seed: int = 0
    num_directions: int = 16
    """Slots in one forward pass."""

    def of(self, seed: int) -> Setting:
        """The same with another seed."""
        return replace(self, seed=seed)

    def header(self, model: Any) -> Header:
        """Of a run over this base model."""
        schedule = schedule_of(
            self.rate, num_slots=self.num_slots, exponent=EXPONENT, kind="linear", num_rounds=self.num_rounds
        )
        return Header(
            run=self.seed.to_bytes(16, "little"),
            base=fingerprint(dict(model.named_parameters())),
            base_name="bench",
            dtype="float32",
            tensors=choose_tensors(model, self.tensors),
            epsilon=self.epsilon,
            exponent=EXPONENT,
            schedule=schedule,
            num_slots=self.num_slots,
            sequencer=RUN_KEY.public_key,
        )

    def batches(self, task: TuningTask) -> Callable[[int], Batch]:
        """The batch of each round."""
        return task.batches(self.batch_size, f"bench {self.seed}")


@dataclass(frozen=True, slots=True)
class Tuned:
    """What came of a run."""

    model: Any
    """Replayed from the journal."""
    journal: bytes
    num_entries: int
    is_same: bool
    """All machines, and the replay, hold the same sums and weights, bit for bit."""
    num_bytes_sent: int
    """By all measurers together, at the (simulated) sockets."""


def tuned_by_journal(load: Load, task: TuningTask, setting: Setting, num_machines: int = MACHINES) -> Tuned:
    """Tune on several simulated machines, write the journal, and make the model from it and the base alone."""
    header = setting.header(load())
    models: list[Any] = []

    def learner() -> ModelLearner:
        models.append(load())
        return ModelLearner(
            header,
            models[-1],
            task.objective,
            setting.batches(task),
            num_directions=setting.num_directions,
            is_exact=setting.is_exact,
        )

    config = RoundsConfig(num_rounds=setting.num_rounds, audit_share=0.0, rounds_per_seal=max(16, setting.num_rounds))
    run = SimulatedRun(header, config, learner, num_machines)
    with run.simulation as simulation:
        records = run.run()
        num_sent = sum(simulation.traffic(name).total(sent=True) for name in run.names)
        journal = journal_of(header, records)
        digests = {each.digest() for each in run.learners.values()}
        for each in run.learners.values():
            assert isinstance(each, ModelLearner)
            each.refresh()
    replayed = load()
    digests.add(replay(read_journal(BytesIO(journal), name="bench.flj"), dict(replayed.named_parameters())))
    weights = {fingerprint(dict(model.named_parameters())) for model in (replayed, *models)}
    return Tuned(
        model=replayed,
        journal=journal,
        num_entries=sum(len(record.codes) for record in records if isinstance(record, Round)),
        is_same=len(digests) == len(weights) == 1,
        num_bytes_sent=num_sent,
    )


@torch.no_grad()
def tuned_in_floats(load: Load, task: TuningTask, setting: Setting) -> Any:
    """The model after the same rounds with measurements as they are."""
    model = load()
    header = setting.header(model)
    measurer = Measurer(header, model, task.objective, num_directions=setting.num_directions)
    measure = measurer.project_gradient if setting.is_exact else measurer.measure
    parameters = chosen_parameters(model, header.tensors)
    batches = setting.batches(task)
    reference: float | None = None
    for number in range(setting.num_rounds):
        with torch.enable_grad():
            found = measure(batches(number), number, range(setting.num_slots))
        own = statistics.median_low([abs(value) for value in found])
        scale, reference = own if reference is None else reference, own
        share = 1 - number / setting.num_rounds
        steps = torch.tensor(found, dtype=torch.float64).div(scale)
        steps = steps.clamp(-COEFFICIENT_MAX / COEFFICIENT_UNIT, COEFFICIENT_MAX / COEFFICIENT_UNIT)
        steps *= setting.rate * share / setting.num_slots
        for tensor in header.tensors:
            drawn = draw_directions(header, tensor, number, 0, setting.num_slots)
            moved = torch.einsum("e,e...->...", steps.float(), drawn.entries(tensor.shape))
            parameters[tensor.name] -= moved
    return model
