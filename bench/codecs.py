"""What each codec costs and loses: speed, bits and error per value, and what error feedback wins back.

Speed is over float32 values, in seconds that one thread had the processor, so that other programs do not count. The
share of what a lossy codec costs that error feedback wins back is measured on softmax regression with uneven features,
trained by four workers that send deltas of eight steps:
(loss without feedback - loss with it) / (loss without feedback - loss of exact deltas).
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.nn.functional import cross_entropy

from bench.report import Report, bench_arguments
from farflung.learn.codecs import second_moment_codec
from farflung.learn.feedback import ErrorFeedback
from farflung.learn.rules import Descent, Nesterov, Rule
from farflung.wire.levels import BLOCK_CODECS
from farflung.wire.tensor import CODECS, decode_tensor, encode_tensor

NUM_WORKERS = 4
NUM_LOCAL_STEPS = 8
NUM_ROUNDS = 60
NUM_FEATURES, NUM_CLASSES = 256, 16
NUM_SAMPLES = 8192
BATCH_SIZE = 64
LEARNING_RATE = 0.3
RULES: dict[str, Rule] = {
    "mean of deltas": Descent(learning_rate=1.0),
    "Nesterov": Nesterov(learning_rate=0.7, momentum=0.9),
}

BITS = {"int4": 4.3, "int2": 2.3}
SPEED_TARGET = 200.0
RECOVERY_TARGET = 0.8

Result = TypeVar("Result")


def seconds_of(function: Callable[[], Result], repeats: int) -> tuple[float, Result]:
    """The least processor seconds of several calls, and what the last one gave."""
    least, result = float("inf"), function()
    for _ in range(repeats):
        begin = time.thread_time()
        result = function()
        least = min(least, time.thread_time() - begin)
    return least, result


def relative_error(codec: str, values: torch.Tensor) -> float:
    """The norm of a codec's error as a share of the values'."""
    return float((decode_tensor(encode_tensor(values, codec)) - values).norm() / values.norm())


def measure_codecs(report: Report, length: int, repeats: int) -> None:
    """One row for each codec: speeds, bits and errors."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(length, generator=generator)
    rows: list[tuple[str, float, float, float, float, float]] = []
    for codec in CODECS:
        values = normal.square() if codec.startswith("log") else normal
        encoding, wire = seconds_of(lambda codec=codec, values=values: encode_tensor(values * 1e-3, codec), repeats)
        decoding, _ = seconds_of(lambda wire=wire: decode_tensor(wire), repeats)
        megabytes = length * 4 / 1e6
        bits = len(wire.data) * 8 / length
        errors = relative_error(codec, values), relative_error(codec, values**3)
        rows.append((codec, megabytes / encoding, megabytes / decoding, bits, *errors))
        if codec in BITS:
            report.claim(f"{codec}: bits per value", f"at most {BITS[codec]}", f"{bits:.2f}", bits <= BITS[codec])
    columns = ("codec", "encode MB/s", "decode MB/s", "bits per value", "error, normal values", "error, their cubes")
    report.table("Codecs, one thread, MB of float32; the log codecs with squares", columns, rows)
    slowest = min((min(row[1], row[2]), row[0]) for row in rows if row[0] in BLOCK_CODECS)
    holds = slowest[0] >= SPEED_TARGET
    measured = f"{slowest[0]:.0f} ({slowest[1]})"
    report.claim("slowest blockwise codec, encode or decode, MB/s", f"at least {SPEED_TARGET:.0f}", measured, holds)


@dataclass(frozen=True, slots=True)
class Problem:
    """Softmax regression whose features have sizes 1, 1/2, 1/3 ..., in random order."""

    features: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def make(cls, seed: int) -> Problem:
        generator = torch.Generator().manual_seed(seed)
        sizes = 4 / torch.arange(1, NUM_FEATURES + 1)[torch.randperm(NUM_FEATURES, generator=generator)]
        features = torch.randn(NUM_SAMPLES, NUM_FEATURES, generator=generator) * sizes
        weights = torch.randn(NUM_FEATURES, NUM_CLASSES, generator=generator) * 2
        return cls(features, torch.multinomial(torch.softmax(features @ weights, 1), 1, generator=generator)[:, 0])

    def loss(self, weights: torch.Tensor) -> float:
        """Over all samples."""
        return float(cross_entropy(self.features @ weights, self.labels))

    def gradient(self, weights: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
        """Of the mean loss of these samples."""
        features = self.features[samples]
        errors = torch.softmax(features @ weights, 1)
        errors[torch.arange(len(samples)), self.labels[samples]] -= 1
        return features.T @ errors / len(samples)


def train(problem: Problem, rule: Rule, codec: str, decay: float | None) -> float:
    """The loss after all rounds; `decay` is that of error feedback, None: no feedback."""
    generator = torch.Generator().manual_seed(1)
    parameters = {"weights": torch.zeros(NUM_FEATURES, NUM_CLASSES)}
    state = rule.init(parameters)
    feedbacks = [ErrorFeedback(decay or 0.0) for _ in range(NUM_WORKERS)]
    share = NUM_SAMPLES // NUM_WORKERS
    for _ in range(NUM_ROUNDS):
        mean = torch.zeros_like(parameters["weights"])
        for worker, feedback in enumerate(feedbacks):
            weights = parameters["weights"].clone()
            for _ in range(NUM_LOCAL_STEPS):
                samples = torch.randint(worker * share, (worker + 1) * share, (BATCH_SIZE,), generator=generator)
                weights -= LEARNING_RATE * problem.gradient(weights, samples)
            sent = feedback.compress({"weights": parameters["weights"] - weights}, codec)["weights"]
            mean += decode_tensor(sent) / NUM_WORKERS
        rule.update(parameters, {"weights": mean}, state)
    return problem.loss(parameters["weights"])


def measure_feedback(report: Report, num_seeds: int) -> None:
    """Losses of exact, 4-bit and 2-bit deltas, with and without feedback; means over seeds."""
    problems = [Problem.make(seed) for seed in range(num_seeds)]
    rows: list[tuple[str, str, float, float, float, float]] = []
    for name, rule in RULES.items():

        def loss(codec: str, decay: float | None, rule: Rule = rule) -> float:
            return statistics.mean(train(problem, rule, codec, decay) for problem in problems)

        exact = loss("raw", None)
        for codec in BITS:
            plain, damped, full = loss(codec, None), loss(codec, 0.9), loss(codec, 1.0)
            rows.append((name, codec, exact, plain, damped, full))
            if codec == "int2":
                share = (plain - full) / (plain - exact)
                text = f"{name}: share of what 2-bit deltas cost that error feedback wins back"
                measured = f"{share:.2f} of {plain - exact:.4f}"
                report.claim(text, f"at least {RECOVERY_TARGET}", measured, plain > exact and share >= RECOVERY_TARGET)
    columns = ("outer rule", "codec", "exact", "no feedback", "feedback, decay 0.9", "feedback, decay 1")
    report.table("Final loss of softmax regression, means over seeds", columns, rows)


def adam_moments(problem: Problem, num_steps: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """First and second moment of Adam on the problem."""
    weights = torch.zeros(NUM_FEATURES, NUM_CLASSES, requires_grad=True)
    optimizer, generator = torch.optim.Adam([weights], lr=0.01), torch.Generator().manual_seed(2)
    for _ in range(num_steps):
        samples = torch.randint(0, NUM_SAMPLES, (BATCH_SIZE,), generator=generator)
        weights.grad = problem.gradient(weights.detach(), samples)
        optimizer.step()
    state = optimizer.state[weights]
    return state["exp_avg"], state["exp_avg_sq"]


def measure_second_moments(report: Report) -> None:
    """How far Adam's step is off when its second moment has travelled."""
    first, second = adam_moments(Problem.make(0))

    def step_error(travelled: torch.Tensor) -> float:
        exact, ours = (first / (one.sqrt() + 1e-8) for one in (second, travelled))
        return float((ours - exact).norm() / exact.norm())

    rows: list[tuple[str, str, float, float]] = []
    for codec in ("bf16", "int8", "int4"):
        ours = second_moment_codec(codec)
        even = step_error(decode_tensor(encode_tensor(second.sqrt(), codec)).square())
        error = step_error(decode_tensor(encode_tensor(second, ours)))
        rows.append((codec, ours, even, error))
        if codec != "bf16":
            text = f"second moment in {ours}: error of Adam's step, as a share of that of the root in {codec}"
            report.claim(text, "at most 0.5", f"{error / even:.2g} ({error:.3f})", error <= 0.5 * even)
    columns = ("width", "codec", "error, root in the even codec", "error, second_moment_codec")
    report.table("Relative error of Adam's step after its second moment travelled", columns, rows)


def main() -> int:
    """Run; the exit status says whether all claims hold."""
    arguments = bench_arguments(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    length, repeats, num_seeds = (1 << 20, 3, 2) if arguments.quick else (1 << 22, 10, 5)
    settings = {"num_values": length, "num_seeds": num_seeds, "num_rounds": NUM_ROUNDS, "num_threads": 1}
    report = Report("codecs", settings)
    measure_codecs(report, length, repeats)
    measure_second_moments(report)
    measure_feedback(report, num_seeds)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
