"""Pretraining with real processes on two regions whose link has 100 Mbit/s and 100 ms, undisturbed and under kill -9.

Two workers in each region, their local servers and the global one are processes; they are killed in a seeded order,
kinds in turn, at seeded moments over the whole run. What must hold: the run ends, its loss is that of the undisturbed
run within noise, and the counters of the servers' journals and the workers' stores add up: every update that was
acknowledged is applied once, over all lives.
"""

import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.report import Report, bench_arguments
from farflung.apps.runs.logs import LOG_NAME

RUN = """
run = {{ name = "kills", folder = "{folder}/run", is_shaped = true }}
data = {{ tokenizer = "bytes" }}
logging = {{ every_seconds = 0.5, tensorboard = false }}
regions = [{{ name = "east", workers = 2 }}, {{ name = "west", workers = 2 }}]
links = [{{ between = ["east", "west"], bandwidth_mbit = 100, latency_ms = 100 }}]

[model]
hidden_size = 64
intermediate_size = 128
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
max_position_embeddings = 128

[training]
sequence_length = 64
batch_size = 4
tokens = {tokens}
num_validation_sequences = 64
optimizer = {{ learning_rate = 0.003 }}

[algorithm]
name = "halos"
num_local_steps = 8
updates_per_push = 8
local_learning_rate = 0.4
local_momentum = 0.5
local_delay = 2
global_learning_rate = 0.7
global_momentum = 0.3
global_delay = 1
merge_weight = 0.5
codec_up_local = "int8"
codec_up_global = "int4"
"""
KINDS = ("worker", "local-server", "global-server")
SEATS = {
    "worker": ("east-worker-0", "east-worker-1", "west-worker-2", "west-worker-3"),
    "local-server": ("east-local-server", "west-local-server"),
    "global-server": ("east-global-server",),
}
LIVED_SECONDS_MIN = 15.0
"""A process is killed once it has been there for so long: younger ones count as unable to start."""
SECONDS_MAX = 1800.0
TOKENS, QUICK_TOKENS = 3_000_000, 250_000
LOSS_MAX, QUICK_LOSS_MAX = 2.6, 3.4
"""A model that has learnt nothing has 5.55."""
QUICK_LIVED_SECONDS_MIN = 3.0
NOISE = 1.05
"""Ratio of losses that runs of different seeds have too."""


@dataclass
class Outcome:
    """What became of a run."""

    loss: float
    """In nats per token of held-out text."""
    counters: dict[str, dict[str, int]]
    """By seat and name."""
    seconds: float
    killed: list[str]


@dataclass(frozen=True)
class Kill:
    """One kill -9."""

    seat: str
    num_tokens: int
    """It comes once the run has trained on so many."""


def kills(seed: int, num_kills: int, tokens: int) -> list[Kill]:
    """Kinds of seats in turn, one in each of equal stretches of the run but the last."""
    order = random.Random(f"{seed}:victims")
    return [
        Kill(
            order.choice(SEATS[KINDS[number % len(KINDS)]]),
            int((number + order.random()) / (num_kills + 1) * tokens),
        )
        for number in range(num_kills)
    ]


def num_tokens_of(log: Path) -> int:
    """So many have all workers of a run trained on, by what they have reported."""
    by_seat: dict[str, int] = {}
    # The last line may be half written.
    for line in log.read_text().split("\n")[:-1] if log.exists() else []:
        entry = json.loads(line)
        if entry["kind"] == "report":
            by_seat[entry["seat"]] = entry["num_tokens"]
    return sum(by_seat.values())


def process_of(
    command: subprocess.Popen[bytes], folder: Path, seat: str, lived_seconds_min: float
) -> psutil.Process | None:
    """The process that sits there now, has taken its seat and is not too young: the one that writes its newest log."""
    logs = sorted((folder / "run" / "seats").glob(f"{seat}-*.log"), key=lambda path: path.stat().st_mtime_ns)
    if not logs or "takes the seat" not in logs[-1].read_text():
        return None
    for child in psutil.Process(command.pid).children(recursive=True):
        with contextlib.suppress(FileNotFoundError, psutil.NoSuchProcess):  # it has just ended
            if os.readlink(f"/proc/{child.pid}/fd/1") == str(logs[-1]):
                return child if time.time() - child.create_time() > lived_seconds_min else None
    return None


def train(folder: Path, tokens: int, wanted: list[Kill], *, lived_seconds_min: float = LIVED_SECONDS_MIN) -> Outcome:
    """One run, with these kills in turn, each once the seat's process has lived for so long.

    Raises:
        RuntimeError: the run has failed, or was over before all of them were killed.
    """
    (folder / "run.toml").write_text(RUN.format(folder=folder, tokens=tokens))
    variables = {"FARFLUNG_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "farflung", "pretrain", str(folder / "run.toml")]
    began_at, killed, waiting = time.monotonic(), list[str](), list(wanted)
    with (folder / "output.txt").open("wb") as output:
        command = subprocess.Popen(
            program, env=os.environ | variables, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while command.poll() is None and time.monotonic() - began_at < SECONDS_MAX:
                if waiting and num_tokens_of(folder / "run" / LOG_NAME) >= waiting[0].num_tokens:
                    found = process_of(command, folder, waiting[0].seat, lived_seconds_min)
                    if found is not None:
                        found.kill()
                        killed.append(waiting.pop(0).seat)
                time.sleep(0.5)
        finally:
            if command.poll() is None:
                command.terminate()
            status = command.wait(90)
    if status or waiting:
        raise RuntimeError(f"status {status}, not killed: {waiting}\n{(folder / 'output.txt').read_text()[-3000:]}")
    summary = json.loads((folder / "run" / "summary.json").read_text())
    return Outcome(summary["validation_loss"], summary["counters"], time.monotonic() - began_at, killed)


def differences(counters: dict[str, dict[str, int]]) -> list[str]:
    """Sentences about what does not add up; none of them if all does."""
    found: list[str] = []
    for region in ("east", "west"):
        server = counters[f"{region}-local-server"]
        workers = [seat for seat in SEATS["worker"] if seat.startswith(region)]
        for seat in workers:
            told, applied = counters[seat]["acknowledged"], server.get(f"applied/{seat}", 0)
            if told != applied:
                found.append(f"{seat} had {told} updates acknowledged, and {applied} are applied")
        if server["applied"] != sum(server.get(f"applied/{seat}", 0) for seat in workers):
            found.append(f"{region}-local-server has applied {server['applied']} updates, its clients another number")
        applied = counters["east-global-server"].get(f"applied/{region}-local-server", 0)
        if not server["merged"] <= applied <= server["pushed"]:
            found.append(f"{region} pushed {server['pushed']} and merged {server['merged']}, {applied} are applied")
    return found


def measure(seed: int, *, is_quick: bool, report: Report) -> None:
    """Both runs, and what they say."""
    tokens, num_kills = (QUICK_TOKENS, 2) if is_quick else (TOKENS, 10)
    loss_max = QUICK_LOSS_MAX if is_quick else LOSS_MAX
    lived = QUICK_LIVED_SECONDS_MIN if is_quick else LIVED_SECONDS_MIN
    with tempfile.TemporaryDirectory() as folder:
        calm_folder, disturbed_folder = Path(folder) / "calm", Path(folder) / "disturbed"
        calm_folder.mkdir()
        disturbed_folder.mkdir()
        calm = train(calm_folder, tokens, [])
        disturbed = train(disturbed_folder, tokens, kills(seed, num_kills, tokens), lived_seconds_min=lived)
    counted = sum(disturbed.counters[seat]["acknowledged"] for seat in SEATS["worker"])
    columns = ("run", "validation loss", "seconds", "killed")
    report.table(
        "two regions of two workers, 100 Mbit/s and 100 ms between them",
        columns,
        [
            ("undisturbed", calm.loss, calm.seconds, "-"),
            ("with kill -9", disturbed.loss, disturbed.seconds, ", ".join(disturbed.killed)),
        ],
    )
    report.claim("loss undisturbed, nats per byte", f"< {loss_max}", f"{calm.loss:.3f}", calm.loss < loss_max)
    ratio = disturbed.loss / calm.loss
    report.claim("loss with kills over undisturbed", f"<= {NOISE}", f"{ratio:.3f}", ratio <= NOISE)
    report.claim("processes killed", num_kills, len(disturbed.killed), len(disturbed.killed) == num_kills)
    wrong = differences(calm.counters) + differences(disturbed.counters)
    said = "; ".join(wrong) or f"none of {counted}"
    report.claim("acknowledged updates not applied exactly once", "none", said, not wrong)


def main() -> int:
    """Measure; 0 if every claim holds."""
    parser = bench_arguments(__doc__ or "")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    settings = {"seed": arguments.seed, "is_quick": arguments.quick}
    report = Report("pretraining under kill -9", settings)
    measure(arguments.seed, is_quick=arguments.quick, report=report)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
