"""How fast and how small one-byte tuning is: directions per second beside MeZO's loop, replay, and memory.

    python -m bench.onebyte_speed [--quick] [--json FILE]

Times are seconds of the processor in one thread, so that a busy machine matters less.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

from bench.report import Report, bench_arguments
from farflung.systems.onebyte.accumulator import Accumulators
from farflung.systems.onebyte.code import coefficients
from farflung.systems.onebyte.header import Header, Schedule
from farflung.systems.onebyte.learner import ModelLearner
from farflung.systems.onebyte.measure import Measurer
from farflung.systems.onebyte.objective import Batch, NextTokenLoss
from farflung.systems.onebyte.records import Part, Round
from farflung.systems.onebyte.steps import Step, step_of
from farflung.systems.onebyte.tensors import choose_tensors

VOCABULARY = 8192
NUM_SLOTS = 64
EPSILON = 1e-3
REPLAYED_ENTRIES = 10_000
SAMPLE_SECONDS = 0.005
TOKENS_PER_FORWARD = 1024
"""Of one side of all directions: more are no faster."""


@dataclass(frozen=True, slots=True)
class Size:
    """A Llama."""

    hidden: int
    num_blocks: int
    vocabulary: int = VOCABULARY

    def model(self) -> LlamaForCausalLM:
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.hidden * 8 // 3,
            num_hidden_layers=self.num_blocks,
            num_attention_heads=self.hidden // 64,
            num_key_value_heads=self.hidden // 64,
            tie_word_embeddings=True,
        )
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def header_of(model: LlamaForCausalLM) -> Header:
    """A run over all of a model's tensors."""
    return Header(
        run=bytes(16),
        base=bytes(32),
        base_name="bench",
        dtype="float32",
        tensors=choose_tensors(model, ["all"]),
        epsilon=EPSILON,
        exponent=24,
        schedule=Schedule(rate=100),
        num_slots=NUM_SLOTS,
        sequencer=bytes(32),
    )


def batch_of(num_sequences: int, length: int, vocabulary: int = VOCABULARY) -> Batch:
    return {"input_ids": torch.randint(vocabulary, (num_sequences, length), generator=torch.Generator().manual_seed(0))}


@torch.no_grad()
def mezo_step(model: LlamaForCausalLM, batch: Batch, seed: int, rate: float = 1e-6) -> None:
    """MeZO, algorithm 1: one direction, in place, regenerated four times; no copy that it could do without."""

    def shift(scale: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)

    objective = NextTokenLoss()
    shift(EPSILON)
    forth = objective(model, batch).mean()
    shift(-2 * EPSILON)
    back = objective(model, batch).mean()
    shift(EPSILON)
    shift(-rate * float(forth - back) / (2 * EPSILON))


def seconds_of(work: Callable[[], object], repeats: int) -> float:
    """Processor seconds of one call, the fastest of some after one that warms up."""
    work()
    found: list[float] = []
    for _ in range(repeats):
        began_at = time.process_time()
        work()
        found.append(time.process_time() - began_at)
    return min(found)


def invented_rounds(num_entries: int) -> list[Round]:
    """Committed rounds as a run's would be."""
    random = np.random.default_rng(0)
    rounds: list[Round] = []
    for number in range(-(-num_entries // NUM_SLOTS)):
        codes = np.clip(random.normal(60, 9, NUM_SLOTS).round(), 1, 127).astype(np.uint8)
        signed = bytes(codes | (random.integers(0, 2, NUM_SLOTS).astype(np.uint8) << 7))
        rounds.append(Round(number, 60, (Part(0, number, 0, signed),)))
    return rounds


def measure_directions(report: Report, size: Size, tokens: list[tuple[int, int]], repeats: int) -> None:
    """Seconds per direction, the round's update included, beside MeZO's."""
    model = size.model()
    header = header_of(model)
    update = update_seconds(header, model, repeats)
    rows: list[tuple[object, ...]] = []
    for num_sequences, length in tokens:
        baseline, forward, exact = direction_seconds(header, model, batch_of(num_sequences, length), repeats)
        ratio, exact_ratio = baseline / (forward + update), baseline / (exact + update)
        rows.append((f"{num_sequences} x {length}", baseline, forward, exact, update, ratio, exact_ratio))
        report.claim(
            f"directions per second of a core, {num_sequences * length} tokens each, over MeZO's loop",
            ">= 3",
            f"{ratio:.2f} ({exact_ratio:.1f} where a machine can back-propagate)",
            ratio >= 3,
        )
    title = f"seconds per direction, {sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters"
    report.table(title, ("tokens", "MeZO", "forward", "exact", "update", "ratio", "exact ratio"), rows)


def direction_seconds(
    header: Header, model: LlamaForCausalLM, batch: Batch, repeats: int
) -> tuple[float, float, float]:
    """One direction by MeZO's loop, in a batched forward pass, and from a backward pass for a round's slots."""
    num_directions = max(1, min(16, TOKENS_PER_FORWARD // batch["input_ids"].numel()))
    measurer = Measurer(header, model, NextTokenLoss(), num_directions=num_directions)
    slots, all_slots = range(num_directions), range(NUM_SLOTS)
    return (
        seconds_of(lambda: mezo_step(model, batch, 1), repeats),
        seconds_of(lambda: measurer.measure(batch, 0, slots), repeats) / num_directions,
        seconds_of(lambda: measurer.project_gradient(batch, 0, all_slots), repeats) / NUM_SLOTS,
    )


def update_seconds(header: Header, model: LlamaForCausalLM, repeats: int) -> float:
    """What one entry's share of a round's update costs, the new weights included."""
    learner = ModelLearner(header, model, NextTokenLoss(), lambda number: batch_of(1, 1))
    rounds = iter(invented_rounds((repeats + 1) * NUM_SLOTS))

    def update() -> None:
        record = next(rounds)
        learner.add([step_of(header, record, part) for part in record.parts])
        learner.refresh()

    return seconds_of(update, repeats) / NUM_SLOTS


def measure_replay(report: Report, size: Size, num_entries: int) -> None:
    """Processor seconds of a replay in one thread; two cores share them."""
    header = header_of(size.model())
    steps: list[Step] = []
    for record in invented_rounds(num_entries):
        weights = coefficients(record.codes, record.reference).astype(np.int64) * header.schedule.rate_of(record.number)
        steps.append(Step(record.number, 0, weights))
    num_parameters = sum(tensor.num_elements for tensor in header.tensors)
    accumulators = Accumulators(header)
    began_at = time.process_time()
    accumulators.add(steps)
    seconds = (time.process_time() - began_at) * REPLAYED_ENTRIES / num_entries
    report.claim(
        f"replay of {REPLAYED_ENTRIES:,} entries on {num_parameters / 1e6:.0f} M parameters, two cores",
        "< 60 s",
        f"{seconds / 2:.0f} s ({seconds:.0f} s of one core, from {num_entries:,} entries)",
        seconds / 2 < 60,
    )


@contextmanager
def peak_of_own_memory() -> Iterator[list[int]]:
    """Bytes of memory that no file backs, at their highest; sampled, as the system keeps no such mark."""
    process, peak, is_over = psutil.Process(), [0], threading.Event()

    def sample() -> None:
        while not is_over.is_set():
            info = process.memory_info()
            peak[0] = max(peak[0], info.rss - info.shared)
            time.sleep(SAMPLE_SECONDS)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        is_over.set()
        thread.join()


def memory_of(folder: str, size: Size, is_measuring: bool, answers: multiprocessing.Queue[int]) -> None:
    """Peak of a process that runs the model, or measures and moves it, on batches of the same number of tokens."""
    torch.set_num_threads(1)
    model = LlamaForCausalLM.from_pretrained(folder)
    assert isinstance(model, LlamaForCausalLM)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # as loaded they are pages of the file, which would count as none
    batch = batch_of(8, 32, size.vocabulary)
    with peak_of_own_memory() as peak:
        if is_measuring:
            tune_once(model, Path(folder), {"input_ids": batch["input_ids"][:1]})
        else:
            with torch.no_grad():
                for _ in range(2):
                    NextTokenLoss()(model, batch)
    answers.put(peak[0])


def tune_once(model: LlamaForCausalLM, folder: Path, batch: Batch) -> None:
    """Measure four slots in one batch of eight, move the weights, measure again; base and sums lie in files."""
    header = header_of(model)
    file = safe_open(str(folder / "model.safetensors"), framework="pt")
    with file as mapped:
        base = {tensor.name: mapped.get_tensor(tensor.name) for tensor in header.tensors}
        learner = ModelLearner(
            header, model, NextTokenLoss(), lambda number: batch, base=base, folder=folder / "sums", num_directions=4
        )
        for number in range(2):
            codes = learner.measure(number, 0, 4)
            record = Round(number, 60, (Part(0, number, 0, codes),))
            learner.add([step_of(header, record, part) for part in record.parts])


def measure_memory(report: Report, size: Size) -> None:
    """Memory of tuning beside that of inference with as many tokens at a time."""
    context = multiprocessing.get_context("spawn")
    peaks: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        size.model().save_pretrained(folder)
        for is_measuring in (False, True):
            answers = context.Queue()
            process = context.Process(target=memory_of, args=(folder, size, is_measuring, answers))
            process.start()
            peaks.append(answers.get(timeout=300))
            process.join()
    ratio = peaks[1] / peaks[0]
    report.claim(
        "memory of measuring and moving, base and sums in mapped files, over inference",
        "<= 1.1",
        f"{ratio:.2f} ({peaks[1] / 1e6:.0f} MB over {peaks[0] / 1e6:.0f} MB)",
        ratio <= 1.1,
    )


def main(arguments: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    is_quick = arguments.quick
    report = Report("onebyte_speed", {"quick": is_quick, "threads": 1, "slots": NUM_SLOTS, "vocabulary": VOCABULARY})
    size, whole = (Size(512, 8), Size(768, 12, 24_000)) if not is_quick else (Size(256, 6), Size(768, 12, 24_000))
    measure_directions(report, size, [(4, 16), (4, 32), (16, 32)], 2 if is_quick else 4)
    measure_replay(report, whole, 640 if is_quick else REPLAYED_ENTRIES)
    measure_memory(report, Size(512, 8) if is_quick else whole)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main(bench_arguments(__doc__ or "").parse_args()))
