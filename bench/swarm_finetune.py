"""Tuning through block servers against the same in one process with peft: LoRA and prompt tuning.

Two or three real server processes on this machine hold a model of some 43 M parameters in 6 blocks; the client holds
embeddings, head and what is trained. Both ways begin with the same values and take the same batches and the same steps
of AdamW, in turns, so that a busy machine is busy for both. The one process has one thread and, at every other step, as
many as all servers together, though not more than there are cores; what is faster counts. Then a server is killed (kill
-9) while gradients are on their way through it, and its replacement goes on; and plain peft loads the adapter.

    python -m bench.swarm_finetune [--quick] [--json FILE]
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bench.models import llama_even
from bench.report import Report, bench_arguments
from bench.swarms import LocalSwarm, connected, endpoint_of, load_local, prompt_of, split_blocks, start_servers
from farflung.apps.finetune.swarm.model import OwnParameters, TunedModel
from farflung.apps.finetune.swarm.settings import MICRO_BATCH_TOKENS
from farflung.apps.library import ConnectedModel
from farflung.model.adapters import LoraAdapter
from farflung.model.peft_files import save_adapter
from farflung.model.source import ModelSource
from farflung.systems.swarm.config import SessionConfig
from farflung.world.address import PeerId

SPEED_MIN = 0.7
LOSS_ERROR_MAX = 1e-4
LEARNING_RATE = 1e-3
PROMPT_TOKENS = 16
RANK = 8
WARM_UP_STEPS = 2
NUM_THREADS_OF_SERVER = 1


@dataclass(frozen=True)
class Setting:
    """What is tuned, and how long."""

    method: str
    num_servers: int
    num_rows: int
    num_tokens: int
    num_steps: int

    def batch(self, number: int) -> torch.Tensor:
        """Token ids of a step, which repeat themselves after four, so that something is learned."""
        rows = [prompt_of(self.num_tokens, 512, seed=1000 * (number % 4) + row) for row in range(self.num_rows)]
        return torch.cat(rows)


@dataclass
class Way:
    """One way of tuning: its losses and the seconds of its steps."""

    step: Callable[[torch.Tensor], float]
    threads: tuple[int, ...]
    """Of this process, by turns."""
    losses: list[float] = field(default_factory=list[float])
    seconds: list[float] = field(default_factory=list[float])

    def take(self, batch: torch.Tensor) -> None:
        """Make a step."""
        torch.set_num_threads(self.threads[len(self.losses) % len(self.threads)])
        began_at = time.perf_counter()
        self.losses.append(self.step(batch))
        self.seconds.append(time.perf_counter() - began_at)

    @property
    def steps_per_second(self) -> dict[int, float]:
        """By the median step after the first ones, for each number of threads."""
        return {
            num_threads: 1 / statistics.median(self.seconds[WARM_UP_STEPS + turn :: len(self.threads)])
            for turn, num_threads in enumerate(self.threads)
        }


def next_token_loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the tokens that follow."""
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def stepper(model: Any, trained: list[torch.nn.Parameter], num_prompted: int = 0) -> Callable[[torch.Tensor], float]:
    """A step of AdamW on a model that is called as transformers' are."""
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)

    def step(tokens: torch.Tensor) -> float:
        optimizer.zero_grad()
        loss = next_token_loss(model(input_ids=tokens, use_cache=False).logits[:, num_prompted:], tokens)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def first_values(source: ModelSource, method: str, embeddings: torch.Tensor) -> OwnParameters:
    """Of what is trained, the same for both ways."""
    generator = torch.Generator().manual_seed(0)
    if method == "prompt":
        return OwnParameters(
            prompt_PH=embeddings[torch.randint(len(embeddings), (PROMPT_TOKENS,), generator=generator)]
        )
    return OwnParameters(lora=LoraAdapter.new(source, rank=RANK, targets="all-linear", generator=generator))


def peft_way(model: Path, source: ModelSource, setting: Setting, folder: Path, threads: tuple[int, ...]) -> Way:
    """One process that holds everything."""
    from peft import PeftModel, PromptTuningConfig, get_peft_model

    base = load_local(model)
    own = first_values(source, setting.method, base.get_input_embeddings().weight.detach())  # pyright: ignore[reportCallIssue]
    adapted: Any
    if own.lora is not None:
        save_adapter(own.lora, folder)
        adapted = PeftModel.from_pretrained(base, str(folder), is_trainable=True)
    else:
        assert own.prompt_PH is not None
        adapted = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=PROMPT_TOKENS))
        adapted.prompt_encoder["default"].embedding.weight.data.copy_(own.prompt_PH.detach())
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    num_prompted = PROMPT_TOKENS if own.lora is None else 0
    return Way(stepper(adapted.eval(), trained, num_prompted), threads)


def swarm_way(client: ConnectedModel, setting: Setting) -> tuple[Way, TunedModel]:
    """Through the servers."""
    embeddings: Any = client.model.get_input_embeddings()
    tuned = TunedModel(client.model, first_values(client.source, setting.method, embeddings.weight.detach()))
    return Way(stepper(tuned, list(tuned.own.parameters())), (NUM_THREADS_OF_SERVER,)), tuned


def client_config(setting: Setting) -> SessionConfig:
    """With micro-batches as the command has them."""
    return replace(SessionConfig(), micro_batch_tokens_max=MICRO_BATCH_TOKENS)


def compare(setting: Setting, model: Path, folder: Path, report: Report) -> None:
    """Both ways in turns, and the two claims."""
    num_threads = min(setting.num_servers * NUM_THREADS_OF_SERVER, os.cpu_count() or 1)
    with LocalSwarm(model, folder, NUM_THREADS_OF_SERVER) as swarm:
        start_servers(swarm, split_blocks(ModelSource.open(str(model)).num_blocks, setting.num_servers))
        with connected(swarm, client_config(setting)) as client:
            alone = peft_way(model, client.source, setting, folder / "first", (1, num_threads))
            through, tuned = swarm_way(client, setting)
            for number in range(setting.num_steps + WARM_UP_STEPS):
                alone.take(setting.batch(number))
                through.take(setting.batch(number))
            named = f"{setting.method} through {setting.num_servers} servers"
            error = max(abs(one - other) for one, other in zip(alone.losses, through.losses, strict=True))
            (speed,) = through.steps_per_second.values()
            report.table(
                f"{named}: loss {through.losses[0]:.3f} -> {through.losses[-1]:.3f}",
                ("way", "steps/s"),
                [
                    *((f"peft, threads: {threads}", rate) for threads, rate in alone.steps_per_second.items()),
                    ("swarm, one thread a server", speed),
                ],
            )
            ratio = speed / max(alone.steps_per_second.values())
            report.claim(
                f"{named}: largest difference of losses",
                f"<= {LOSS_ERROR_MAX:g}",
                f"{error:.1e}",
                error <= LOSS_ERROR_MAX,
            )
            report.claim(f"{named}: steps a second, of peft's", f">= {SPEED_MIN}x", f"{ratio:.2f}x", ratio >= SPEED_MIN)
            if tuned.own.lora is not None:
                loads_in_peft(model, tuned, setting, folder / "tuned", named, report)


def loads_in_peft(model: Path, tuned: TunedModel, setting: Setting, folder: Path, named: str, report: Report) -> None:
    """The adapter as files, in a fresh model."""
    from peft import PeftModel

    assert tuned.own.lora is not None
    save_adapter(tuned.own.lora, folder)
    tokens = setting.batch(0)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(load_local(model), str(folder)).eval()(input_ids=tokens).logits
        error = float((tuned(tokens).logits - theirs).abs().max())
    scale = float(theirs.abs().max())
    report.claim(
        f"{named}: plain peft loads the adapter; difference of logits (up to {scale:.1f})",
        f"<= {LOSS_ERROR_MAX:g}",
        f"{error:.1e}",
        error <= LOSS_ERROR_MAX,
    )


def kill(setting: Setting, model: Path, folder: Path, report: Report) -> None:
    """The same steps twice: undisturbed, and with a server that is killed amid a backward pass."""
    num_blocks = ModelSource.open(str(model)).num_blocks
    halves = split_blocks(num_blocks, 2)
    curves: list[list[float]] = []
    for is_disturbed in (False, True):
        place = folder / f"disturbed-{is_disturbed}"
        place.mkdir()
        with LocalSwarm(model, place, NUM_THREADS_OF_SERVER) as swarm:
            start_servers(swarm, [*halves, halves[1]])
            with connected(swarm, client_config(setting)) as client:
                way, _ = swarm_way(client, setting)
                for number in range(setting.num_steps):
                    if is_disturbed and number == setting.num_steps // 2:
                        step_with_kill(way, setting.batch(number), swarm, client)
                    else:
                        way.take(setting.batch(number))
        curves.append(way.losses)
    error = max(abs(one - other) for one, other in zip(*curves, strict=True))
    report.claim(
        f"{setting.method}: a server killed amid a backward pass changes the curve by",
        f"<= {LOSS_ERROR_MAX:g}",
        f"{error:.1e}",
        error <= LOSS_ERROR_MAX,
    )


def step_with_kill(way: Way, batch: torch.Tensor, swarm: LocalSwarm, client: ConnectedModel) -> None:
    """A step; whoever holds the last blocks and is asked for gradients first is killed as soon as it is."""
    meter, bridge = client.connection.node.world.traffic, client.connection.bridge
    last = client.source.num_blocks
    peers = [peer for peer, info in bridge.call(client.view.servers).items() if info.blocks.last == last]

    def num_asked() -> dict[PeerId, int]:
        return bridge.call(lambda: {peer: meter.total(peer=peer, kind="Backward", sent=True) for peer in peers})

    before = num_asked()
    killed: list[PeerId] = []

    def watch() -> None:
        while not killed:
            killed.extend([peer for peer, count in num_asked().items() if count > before[peer]][:1])
        swarm.at(endpoint_of(client, killed[0])).process.kill()

    watcher = threading.Thread(target=watch)
    watcher.start()
    way.take(batch)
    watcher.join()


def main() -> int:
    """Run the benchmark; 0 if every claim holds."""
    arguments = bench_arguments(__doc__ or "").parse_args()
    num_steps, num_rows, num_tokens = (8, 16, 64) if arguments.quick else (16, 16, 128)
    settings = {
        "model": "llama_even",
        "rows": num_rows,
        "tokens": num_tokens,
        "steps": num_steps,
        "micro_batch_tokens": MICRO_BATCH_TOKENS,
        "cores": os.cpu_count(),
    }
    report = Report("swarm_finetune", settings)
    model = llama_even()
    with tempfile.TemporaryDirectory(prefix="farflung-bench-") as folder:
        for method in ("lora", "prompt"):
            for num_servers in (2, 3):
                place = Path(folder) / f"{method}-{num_servers}"
                place.mkdir()
                compare(Setting(method, num_servers, num_rows, num_tokens, num_steps), model, place, report)
            place = Path(folder) / f"{method}-kill"
            place.mkdir()
            kill(Setting(method, 3, num_rows, num_tokens, max(4, num_steps // 3)), model, place, report)
    return report.finish(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
