"""What is said before a run by single bytes: its costs, when it pays on these links, and steps that are too short."""

from typing import TYPE_CHECKING

import torch

from farflung.apps.finetune.advice import Setting, advise
from farflung.apps.finetune.run_file import FinetuneRun
from farflung.apps.finetune.sharing import sharing_words
from farflung.systems.onebyte.measure import Measurer, epsilon_warning

if TYPE_CHECKING:
    from farflung.apps.finetune.materials import TuningMaterials

CHECKED_SLOTS = 32
CHECKED_EXAMPLES = 4
SAFE_EPSILON = 1e-4
"""For float32, so that large models need not be asked."""
CROSSOVER = 2
"""Which of the sentences is about links."""
EXACT = (
    "This run measures by one backward pass a round (method.is_exact), which gives the same bytes with less noise; "
    "--set method.is_exact=false measures by forward passes alone."
)


def opening_words(run: FinetuneRun, materials: "TuningMaterials") -> list[str]:
    """Sentences for the user, in order."""
    warning = _epsilon_words(run, materials)
    shared = sharing_words(run.onebyte, materials.workload(), run.num_workers)
    return [*_advice(run, materials), *shared, *([] if warning is None else [f"Warning: {warning}."])]


def _advice(run: FinetuneRun, materials: "TuningMaterials") -> list[str]:
    num_parameters, num_bytes = materials.size
    lengths = [len(row) for row in materials.task.train.tokens]
    sentences = advise(
        Setting(
            num_parameters=num_parameters,
            bytes_per_parameter=num_bytes,
            tokens_per_entry=run.training.batch_size * -(-sum(lengths) // len(lengths)),
            entries_per_round=run.onebyte.num_slots,
            num_machines=run.num_workers,
            bytes_per_second=min((link.bytes_per_second for link in run.links), default=1.0),
            latency_seconds=max((link.latency_ms for link in run.links), default=0.0) / 1000,
        )
    ).sentences
    chosen = [sentence for number, sentence in enumerate(sentences) if run.links or number != CROSSOVER]
    return [*chosen, EXACT] if run.onebyte.is_exact else chosen


def _epsilon_words(run: FinetuneRun, materials: "TuningMaterials") -> str | None:
    """Whether signs hold when steps are longer; on a few examples, and the same wherever the run is kept."""
    dtype = next(materials.model.parameters()).dtype
    if run.onebyte.is_exact or (dtype == torch.float32 and run.onebyte.epsilon >= SAFE_EPSILON):
        return None
    header = materials.header(run.onebyte, bytes(32))
    batch = materials.task.train.batch(range(min(CHECKED_EXAMPLES, len(materials.task.train))))
    objective = materials.task.objective
    measurer = Measurer(header, materials.model, objective, num_directions=run.onebyte.directions_per_pass)
    rate = measurer.sign_flip_rate(batch, 0, range(CHECKED_SLOTS))
    return epsilon_warning(rate, header.epsilon, dtype)
