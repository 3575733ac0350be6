"""Guessing ahead through a chain of three servers over long links: tokens a second, against decoding one by one.

    python -m bench.speculation [--quick] [--text FILE] [--json FILE]

A small model of characters is trained on real text (that of FILE, or Python's standard library) and a smaller one on
the same text to guess for it; both are kept. Servers hold the larger one's blocks, each behind a proxy that delays and
limits. The client continues texts that no training saw, greedily and by drawing: one by one, with guesses by what
followed the same characters before, and with guesses by the smaller model. All three must say the same.
"""

from __future__ import annotations

import hashlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from bench.report import Report, bench_arguments
from bench.swarms import Links, LocalSwarm, connected, split_blocks, start_servers
from farflung.apps.align.small_policy import END, PADDING, Pretraining, small_policy
from farflung.apps.drafting import LOOKUP, OFF, speculation_of
from farflung.apps.library import ConnectedModel
from farflung.learn.corpus import standard_library
from farflung.model.generator import GeneratedToken, GenerationRequest, ModelGenerator
from farflung.model.sample import Sampling
from farflung.runtime.home import default_home

VOCABULARY = [*map(chr, range(32, 127)), END, PADDING]
TEXT_TOKENS = 192
BATCH_SIZE = 8
HELD_OUT_SHARE = 0.05
LARGE = Pretraining(num_steps=600, num_blocks=6, hidden_size=128, context_length_max=TEXT_TOKENS)
SMALL = Pretraining(num_steps=600, num_blocks=1, hidden_size=64, context_length_max=TEXT_TOKENS)
NUM_SERVERS = 3
BYTES_PER_SECOND = 100e6 / 8
ROUND_TRIPS_SECONDS = (0.1, 0.05, 0.0)
JUDGED_ROUND_TRIP_SECONDS = 0.1
FASTER_MIN = 2.0
SHARE_MIN = 0.95
PROMPT_TOKENS = 64
TEMPERATURES = (0.0, 0.8)


def tokens_of(path: Path | None) -> torch.Tensor:
    """Characters as numbers; what is no printable ASCII is a space."""
    text = "".join(standard_library(3_000_000)) if path is None else path.read_text(encoding="utf-8", errors="ignore")
    codes = torch.frombuffer(bytearray(text.encode("ascii", "replace")), dtype=torch.uint8).long()
    return torch.where((codes >= 32) & (codes < 127), codes - 32, 0)


def models_for(tokens_T: torch.Tensor) -> tuple[Path, Path]:
    """Folders of the larger and the smaller model, trained on all but the end of the text unless they are there."""
    seen_T = tokens_T[: int(len(tokens_T) * (1 - HELD_OUT_SHARE))]
    digest = hashlib.sha256(seen_T.numpy().tobytes()).hexdigest()[:8]

    def texts(stream: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        starts = torch.randint(len(seen_T) - TEXT_TOKENS, (BATCH_SIZE, 1), generator=stream)
        texts_NT = seen_T[starts + torch.arange(TEXT_TOKENS)]
        return texts_NT, torch.ones_like(texts_NT, dtype=torch.bool)

    folder = default_home() / "models"
    names = {"large": LARGE, "small": SMALL}
    large, small = (
        small_policy(folder / f"characters-{name}-{digest}", VOCABULARY, pretraining, texts)
        for name, pretraining in names.items()
    )
    return large, small


def decode(
    model: ConnectedModel, draft: str, prompt: tuple[int, ...], num_tokens: int, temperature: float = 0.0
) -> tuple[float, list[int], int]:
    """Tokens a second after the first one, the tokens, and how many of them were guessed."""
    generator = ModelGenerator(model.model, open_cache=model.open_cache, speculation=speculation_of(draft, model))
    request = GenerationRequest(prompt=prompt, num_tokens_max=num_tokens, sampling=Sampling(temperature=temperature))
    said: list[int] = []
    num_guessed, first_at = 0, 0.0
    for step in generator.stream(request):
        assert isinstance(step, GeneratedToken), "no prompt is scored here"
        said.append(step.scored.token)
        num_guessed += step.is_guessed
        first_at = first_at or time.perf_counter()
    return (num_tokens - 1) / (time.perf_counter() - first_at), said, num_guessed


def measure(
    report: Report, folder: Path, models: tuple[Path, Path], texts: Sequence[tuple[int, ...]], seconds: float, num: int
) -> list[tuple[object, ...]]:
    """All ways of all texts over links of this round trip, in turn; the rows of the table."""
    large, small = models
    ways = {"one by one": OFF, "lookup": LOOKUP, "small model": str(small)}
    links = Links(one_way_seconds=seconds / 2, bytes_per_second=BYTES_PER_SECOND)
    rows: list[tuple[object, ...]] = []
    with ExitStack() as stack:
        swarm = stack.enter_context(LocalSwarm(large, folder, torch.get_num_threads(), links))
        start_servers(swarm, split_blocks(LARGE.num_blocks, NUM_SERVERS))
        model = stack.enter_context(connected(swarm))
        decode(model, OFF, texts[0], 4)
        for temperature in TEMPERATURES:
            rates: dict[str, list[float]] = {way: [] for way in ways}
            guessed = dict.fromkeys(ways, 0)
            is_same = True
            for text in texts:
                answers: list[list[int]] = []
                for way, draft in ways.items():
                    rate, said, num_guessed = decode(model, draft, text, num, temperature)
                    rates[way].append(rate)
                    guessed[way] += num_guessed
                    answers.append(said)
                is_same = is_same and answers[1:] == answers[:-1]
            title = f"{seconds * 1e3:g} ms there and back, {'drawn' if temperature else 'greedy'}"
            report.claim(f"{title}: the same with and without guesses", "yes", "yes" if is_same else "no", is_same)
            is_judged = seconds == JUDGED_ROUND_TRIP_SECONDS and not temperature
            for way, each in rates.items():
                faster = statistics.median(own / plain for own, plain in zip(each, rates["one by one"], strict=True))
                rows.append((title, way, statistics.median(each), faster, f"{guessed[way] / (num * len(texts)):.0%}"))
                if way != "one by one":
                    target = FASTER_MIN if is_judged else SHARE_MIN
                    claim = f"{title}, {way}: tokens a second over one by one"
                    report.claim(claim, f">= {target:g}x", f"{faster:.2f}x", faster >= target)
    return rows


def main(arguments_given: Sequence[str] | None = None) -> int:
    """Train if need be, measure, print and judge."""
    parser = bench_arguments(__doc__ or "")
    parser.add_argument("--text", type=Path, metavar="FILE", help="train and continue this text")
    arguments = parser.parse_args(arguments_given)
    torch.set_num_threads(1)
    tokens_T = tokens_of(arguments.text)
    models = models_for(tokens_T)
    round_trips, num_texts, num = ((0.1,), 1, 48) if arguments.quick else (ROUND_TRIPS_SECONDS, 3, 120)
    held_out_T = tokens_T[int(len(tokens_T) * (1 - HELD_OUT_SHARE)) :]
    stride = len(held_out_T) // num_texts
    texts = [tuple(held_out_T[at * stride : at * stride + PROMPT_TOKENS].tolist()) for at in range(num_texts)]
    settings = {"round_trips_seconds": round_trips, "texts": num_texts, "tokens": num, "servers": NUM_SERVERS}
    report = Report("speculation", settings)
    rows: list[tuple[object, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seconds in round_trips:
            home = Path(folder) / str(seconds)
            home.mkdir()
            rows += measure(report, home, models, texts, seconds, num)
    report.table("three servers", ("links", "way", "tokens/s", "over one by one", "guessed"), rows)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
