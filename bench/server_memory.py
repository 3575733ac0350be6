"""What parameter servers of a large model need: a real local server below a real global one, each in its own process.

A client streams an update of constants to the local server, which pushes it to the global one and merges the model that
comes back; every model and update crosses real links (TLS on loopback) and the disks of both servers, and both save
their state. The most that each process ever had in memory is compared with the float32 model: 1 for the model itself
and 1 for the tensor of its rule (delayed Nesterov) are state, all beyond that are parts on their way.
"""

import asyncio
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from bench.report import Report, bench_arguments
from bench.server_memory_ends import DELTA, START, Pusher, ServerProcess, memory_bytes, server_process, settings, shapes
from farflung.runtime.node import open_node
from farflung.world.mailbox import Mailbox

MODELS_MAX = 2.5
"""Of a server beside its rule's state, in float32 models."""
BEYOND_BYTES_MAX = 384 << 20
"""Of a server beyond model and rule's tensor, at any size of the model."""
POLL_SECONDS = 1.0
GIB = 1 << 30
NUM_STATE_TENSORS = 2
MEMORY_MODELS, DISK_MODELS = 4.3, 16.0
"""Models for which this machine must have room before a run begins: of both servers together."""


@dataclass(frozen=True)
class Measured:
    """One run with one size of model."""

    num_values: int
    local: dict[str, Any]
    root: dict[str, Any]
    pusher_bytes: int
    seconds: float
    is_right: bool
    """Every value of all three copies is what the rules say."""

    @property
    def model_bytes(self) -> int:
        """Of the float32 model."""
        return 4 * self.num_values


async def measure(num_values: int, num_updates: int, folder: Path) -> Measured:
    """Stream updates through both servers."""
    began = time.monotonic()
    async with (
        server_process(folder / "global", num_values, num_updates) as root,
        server_process(folder / "local", num_values, num_updates, root.ticket) as local,
    ):
        node = await open_node(ticket=root.ticket, home=folder / "pusher", is_dial_only=True)
        before = memory_bytes("VmRSS")
        pusher = Pusher(node, local, num_values, num_updates)
        try:
            with Mailbox(node.world, "pusher") as mailbox:
                await pusher.join(mailbox)
                note(began, "the first model has come down")
                for sequence in range(1, num_updates + 1):
                    await pusher.push(mailbox, sequence)
                    note(began, f"update {sequence} is applied")
                    await merged(local, sequence)
                    note(began, f"update {sequence} is pushed and merged")
        finally:
            await node.close()
        ends = await local.ask("values"), await root.ask("values")
    sent, local_value, global_value = expected(num_updates)
    is_right = (
        all(abs(value - sent) < 1e-6 for value in pusher.values)
        and all(abs(ends[0][edge] - local_value) < 1e-6 for edge in ("low", "high"))
        and all(abs(ends[1][edge] - global_value) < 1e-6 for edge in ("low", "high"))
    )
    return Measured(num_values, *ends, memory_bytes("VmHWM") - before, time.monotonic() - began, is_right)


async def merged(local: ServerProcess, num_merges: int) -> None:
    """Wait for the answer to a push."""
    while (await local.ask())["merges"] < num_merges:  # noqa: ASYNC110 (it is another process)
        await asyncio.sleep(POLL_SECONDS)


def note(began: float, sentence: str) -> None:
    """Progress, for runs of many minutes."""
    print(f"{time.monotonic() - began:6.0f} s  {sentence}", flush=True)


def expected(num_updates: int) -> tuple[float, float, float]:
    """One value by HALoS's equations: of the last model sent to the client, of the local and of the global server."""
    config = settings(num_updates)
    theta, theta_global, delta = ({"p": torch.tensor([value])} for value in (START, START, DELTA))
    local_state, global_state = config.local_rule.init(theta), config.global_rule.init(theta_global)
    sent = START
    for _ in range(num_updates):
        snapshot = theta["p"].clone()
        config.local_rule.update(theta, delta, local_state)
        sent = float(theta["p"])
        config.global_rule.update(theta_global, {"p": snapshot - theta["p"]}, global_state)
        theta["p"].lerp_(theta_global["p"], config.merge_weight)
    return sent, float(theta["p"]), float(theta_global["p"])


def require_room(num_values: int, folder: Path) -> None:
    """Raises ValueError if this machine has not enough memory or disk for both servers."""
    memory, disk = psutil.virtual_memory().available, psutil.disk_usage(str(folder)).free
    for what, found, models in (("memory", memory, MEMORY_MODELS), ("disk", disk, DISK_MODELS)):
        if found < models * 4 * num_values:
            needed = models * 4 * num_values / GIB
            raise ValueError(f"this needs {needed:.0f} GiB of {what} and {found / GIB:.0f} are free: use --quick")


def tell(report: Report, measured: Measured) -> None:
    """One table and the claims of one size."""
    rows: list[tuple[object, ...]] = []
    size = f"{measured.num_values / 1e9:.2g} B parameters"
    for name, found in (("local server", measured.local), ("global server", measured.root)):
        own = found["peak"] - found["before"]
        models, beyond = own / measured.model_bytes, own - NUM_STATE_TENSORS * measured.model_bytes
        rows.append((name, found["before"] / 1e9, found["peak"] / 1e9, models, found["disk"] / measured.model_bytes))
        report.claim(
            f"{size}: {name}'s peak in float32 models, beside its rule's tensor (1)",
            f"at most {MODELS_MAX}",
            f"{models - 1:.2f}",
            models - 1 <= MODELS_MAX,
        )
        report.claim(
            f"{size}: {name}'s peak beyond model and rule's tensor",
            f"at most {BEYOND_BYTES_MAX >> 20} MiB",
            f"{beyond / (1 << 20):.0f} MiB",
            beyond <= BEYOND_BYTES_MAX,
        )
    columns = ("process", "before, GB", "peak, GB", "peak - before, models", "disk, models")
    title = f"{size}, a model of {measured.model_bytes / 1e9:.2f} GB, {measured.seconds:.0f} s"
    report.table(title, columns, rows)
    report.claim(
        f"{size}: what the client, which keeps nothing of the model, needs to stream it",
        f"at most {BEYOND_BYTES_MAX >> 20} MiB",
        f"{measured.pusher_bytes / (1 << 20):.0f} MiB",
        measured.pusher_bytes <= BEYOND_BYTES_MAX,
    )
    report.claim(
        f"{size}: all values of all models are what the equations give", "yes", measured.is_right, measured.is_right
    )


def main() -> int:
    """A model of 0.1 B parameters; without --quick also one of 1 B."""
    arguments = bench_arguments(__doc__ or "").parse_args()
    sizes = {100_000_000: 1} if arguments.quick else {100_000_000: 2, 1_000_000_000: 1}
    report = Report("server_memory", {"updates by parameters": {str(size): number for size, number in sizes.items()}})
    for size, num_updates in sizes.items():
        num_values = sum(torch.Size(shape).numel() for shape in shapes(size).values())
        with tempfile.TemporaryDirectory(prefix="farflung-") as folder:
            require_room(num_values, Path(folder))
            tell(report, asyncio.run(measure(num_values, num_updates, Path(folder))))
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
