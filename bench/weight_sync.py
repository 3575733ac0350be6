"""What a new version of the weights costs on its way: bytes and processor time by learning rate and by what travels.

    python -m bench.weight_sync [--quick] [--json FILE]

Feed-forward blocks are trained by AdamW on random vectors: what changes depends on the rate, not on the task. Weights
are float32, of which bfloat16 copies are published after every step, as rollout nodes install them. Full weights, the
delta that the weight plane makes, and an adapter of rank 8 alone are measured.
Every delta is applied and compared with what was published, to the bit. Seconds are of one processor core.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from bench.report import Report, bench_arguments
from farflung.learn.parameters import Tensors, fingerprint, num_bytes
from farflung.systems.alignment.codecs import words_of
from farflung.systems.alignment.config import WeightsConfig
from farflung.systems.alignment.deltas import NOTHING, pack_version, unpack_version, version_of

LEARNING_RATES = (1e-3, 1e-4, 1e-5, 3e-6, 1e-6)
RANK = 8
FEWER_BYTES_MIN = 20.0
LOW_RATE = 3e-6
NUM_CHAINED = 50


@dataclass(frozen=True, slots=True)
class Size:
    """Of the model and the runs."""

    hidden: int
    blocks: int
    warm_steps: int
    """Steps before any is measured: Adam's first ones move every weight by the whole rate."""
    steps: int


FULL, QUICK = Size(384, 6, 60, 10), Size(192, 2, 40, 4)


class Blocks(torch.nn.Module):
    """A stack of residual blocks that learns a fixed random function; sized like the layers of a language model."""

    def __init__(self, size: Size, *, has_adapter: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        width = size.hidden
        self.up = torch.nn.ParameterList(_weights(width, 4 * width) for _ in range(size.blocks))
        self.down = torch.nn.ParameterList(_weights(4 * width, width) for _ in range(size.blocks))
        self.norm = torch.nn.ParameterList(torch.nn.Parameter(torch.ones(width)) for _ in range(size.blocks))
        self.adapters = torch.nn.ParameterList()
        if has_adapter:
            for one in self.parameters():
                one.requires_grad_(False)
            for _ in range(size.blocks):
                self.adapters.append(_weights(width, RANK))
                self.adapters.append(torch.nn.Parameter(torch.zeros(RANK, 4 * width)))

    def forward(self, states_NH: torch.Tensor) -> torch.Tensor:
        for number, (up, down, norm) in enumerate(zip(self.up, self.down, self.norm, strict=True)):
            normed_NH = torch.nn.functional.layer_norm(states_NH, states_NH.shape[-1:], norm)
            inner_NI = normed_NH @ up
            if len(self.adapters):
                inner_NI = inner_NI + normed_NH @ self.adapters[2 * number] @ self.adapters[2 * number + 1]
            states_NH = states_NH + torch.nn.functional.gelu(inner_NI) @ down
        return states_NH


def _weights(rows: int, columns: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(rows, columns) * 0.02)


def published(size: Size, learning_rate: float, *, has_adapter: bool = False) -> Iterator[Tensors]:
    """bfloat16 weights that are trained, after each step that is measured and once before."""
    model = Blocks(size, has_adapter=has_adapter)
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    stream = torch.Generator().manual_seed(1)
    mixing_HH = torch.randn(size.hidden, size.hidden, generator=stream) / size.hidden**0.5
    for step in range(size.warm_steps + size.steps):
        states_NH = torch.randn(256, size.hidden, generator=stream)
        (model(states_NH) - states_NH @ mixing_HH).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step >= size.warm_steps - 1:
            yield {name: one.detach().bfloat16() for name, one in trained.items()}


@dataclass(slots=True)
class Measured:
    """Means over the versions of one run."""

    changed_share: float
    """Of the bfloat16 values."""
    num_bytes: float
    pack_seconds: float
    unpack_seconds: float
    codecs: str
    """What was found smallest, by bytes."""


def measure(versions: Iterator[Tensors], config: WeightsConfig) -> Measured:
    """Pack, send and rebuild every version from the one before it.

    Raises:
        AssertionError: one came out otherwise than it was published.
    """
    held = version_of(0, next(versions))
    changed, sizes, packing, unpacking = [], [], [], []
    codecs: dict[str, int] = {}
    for number, tensors in enumerate(versions, 1):
        new = version_of(number, tensors)
        began = time.process_time()
        packed = pack_version(new, held, config, None)
        between = time.process_time()
        rebuilt = unpack_version(packed.manifest, held, packed.chunks.__getitem__)
        unpacking.append(time.process_time() - between)
        packing.append(between - began)
        assert rebuilt.weights_hash == fingerprint(tensors), f"version {number} is not what was published"
        sizes.append(packed.manifest.num_bytes)
        words = [(words_of(new.tensors[name]), words_of(held.tensors[name])) for name in tensors]
        changed.append(sum((one != other).sum() for one, other in words) / sum(len(one) for one, _ in words))
        for name, count in packed.codecs.items():
            codecs[name] = codecs.get(name, 0) + count
        held = rebuilt
    names = sorted(codecs, key=lambda name: -codecs[name])[:2]
    return Measured(_mean(changed), _mean(sizes), _mean(packing), _mean(unpacking), " ".join(names))


def _mean(values: list[float]) -> float:
    return float(sum(values) / len(values))


def chained(size: Size, config: WeightsConfig) -> bool:
    """Whether 50 deltas on top of each other, and a change that is taken back, come out to the bit."""
    run = published(Size(size.hidden, size.blocks, 1, NUM_CHAINED), LOW_RATE)
    versions = [version_of(number, tensors) for number, tensors in enumerate(run)]
    held = versions[0]
    for new in versions[1:]:
        packed = pack_version(new, held, config, None)
        held = unpack_version(packed.manifest, held, packed.chunks.__getitem__)
    one, other = versions[0], versions[-1]
    there = pack_version(other, one, config, None).chunks
    back = pack_version(one, other, config, None)
    again = unpack_version(back.manifest, other, back.chunks.__getitem__)
    return held.weights_hash == other.weights_hash and pack_version(other, again, config, None).chunks == there


def main() -> int:
    """Run it all; exit status as `Report.finish`."""
    arguments = bench_arguments(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    size, config = QUICK if arguments.quick else FULL, WeightsConfig()
    whole = version_of(0, next(published(Size(size.hidden, size.blocks, 1, 0), LOW_RATE)))
    full_bytes = num_bytes(whole.tensors)
    anchor_bytes = pack_version(whole, NOTHING, config, None).manifest.num_bytes
    report = Report("weight_sync", {"size": str(size), "full_bytes": full_bytes, "quick": arguments.quick})
    rows: list[list[object]] = [["anchor", "-", "-", anchor_bytes, full_bytes / anchor_bytes, "-", "-", "-"]]
    ratios: dict[float, float] = {}
    for rate in LEARNING_RATES:
        for what, has_adapter in (("delta", False), ("adapter alone", True)):
            found = measure(published(size, rate, has_adapter=has_adapter), config)
            ratio = full_bytes / found.num_bytes
            if not has_adapter:
                ratios[rate] = ratio
            changed = f"{found.changed_share:.2%}"
            rows.append(
                [
                    what,
                    f"{rate:g}",
                    changed,
                    round(found.num_bytes),
                    ratio,
                    found.pack_seconds,
                    found.unpack_seconds,
                    found.codecs,
                ]
            )
    columns = ("what", "learning rate", "values changed", "bytes", "times fewer", "pack s", "unpack s", "codecs")
    report.table(f"one version of {full_bytes:,} bytes in bfloat16", columns, rows)
    low = {rate: ratio for rate, ratio in ratios.items() if rate <= LOW_RATE}
    report.claim(
        f"bytes of a sync at learning rates up to {LOW_RATE:g}, against full bfloat16",
        f">= {FEWER_BYTES_MIN:g} times fewer",
        ", ".join(f"{rate:g}: {ratio:.0f}" for rate, ratio in low.items()),
        min(low.values()) >= FEWER_BYTES_MIN,
    )
    worst = min(ratios.values())
    report.claim("a delta is never larger than the full weights", ">= 1 times fewer", f"{worst:.2f}", worst >= 1)
    is_exact = chained(size, config)
    report.claim(f"{NUM_CHAINED} chained deltas, and there, back and there again", "the same bits", is_exact, is_exact)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
