"""`farflung demo`: the story from training to the table."""

import itertools
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from farflung.apps.demo.swarm import DemoSwarm
from farflung.apps.demo.train import TrainConfig, trained_model
from farflung.apps.processes import CommandFailed, Supervisor
from farflung.runtime.home import default_home

END_TOKEN = 0
"""The first token of the demonstration's tokenizer ends a file; it is forbidden, so that the answer is long enough."""
QUESTION = "class LineReader:\n    def __init__(self, path):\n"
ANSWER_TOKENS = 200
KILL_AFTER_TOKENS = 60
TEMPERATURE, TOP_K, SEED = 0.6, 40, 1
"""A model this small repeats itself when it always takes the most likely token; both sides draw from the same seed."""
TERMINATED = 143


@dataclass(slots=True)
class Answer:
    """What came over HTTP, and when."""

    text: str = ""
    times_seconds: list[float] = field(default_factory=list[float])
    """When each piece came, on the monotonic clock."""
    killed: str = ""
    killed_at: float = 0.0
    num_tokens: int = 0

    @property
    def stall_seconds(self) -> float:
        """The longest silence that contains or follows the kill."""
        gaps = itertools.pairwise(self.times_seconds)
        return max((late - early for early, late in gaps if late >= self.killed_at), default=float("nan"))

    @property
    def tokens_per_second(self) -> float:
        """From the first piece to the kill: undisturbed."""
        before = [at for at in self.times_seconds if at <= self.killed_at]
        return (len(before) - 1) / (before[-1] - before[0])


class DemoFailed(CommandFailed):
    """The demonstration did not show what it promises."""


def run_demo(folder: Path | None, train_seconds: float) -> None:
    """Train (or find) the model, run the swarm, kill a server in mid-answer, compare, and print the table.

    Raises:
        ValueError: impossible settings, or the openai client is missing.
        DemoFailed: the words differ.
    """
    config = TrainConfig(seconds=train_seconds)
    _need_openai()
    signal.signal(signal.SIGTERM, _leave)
    transformers.logging.disable_progress_bar()
    console = Console()
    began_at = time.monotonic()
    keep = folder or default_home() / "demo"
    keep.mkdir(parents=True, exist_ok=True)
    model = trained_model(keep, config, console)
    with TemporaryDirectory(prefix="farflung-demo-") as scratch:
        with Supervisor(Path(scratch)) as supervisor:
            swarm = DemoSwarm(supervisor, model, config.num_blocks, Path(scratch))
            with console.status("starting three block servers (one block range twice) and the HTTP interface"):
                swarm.start()
            for name, child in swarm.servers.items():
                console.print(f"server {name} (process {child.process.pid}): {child.lines()[-1]}")
            if swarm.dashboard_url:
                console.print(f"watch and chat, as long as this goes on: {swarm.dashboard_url}")
            answer = ask(swarm, model.name, console)
            links = link_bytes(swarm, answer)
        console.print("All processes are stopped.")
    local_text, local_rate = local_answer(model, answer.num_tokens)
    console.print(table(answer, links, local_rate))
    if answer.text != local_text:
        raise DemoFailed(f"the words differ from those of one machine:\n{answer.text}\n--- local\n{local_text}")
    console.print(
        f"[green]The same words as transformers.generate on one machine, though {answer.killed} was killed in "
        f"mid-answer.[/green] {time.monotonic() - began_at:.0f} s in all."
    )


def _need_openai() -> None:
    try:
        import openai  # noqa: F401
    except ImportError:
        raise ValueError("the demonstration asks through the openai client: pip install 'farflung[demo]'") from None


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(TERMINATED)


def ask(swarm: DemoSwarm, name: str, console: Console) -> Answer:
    """Stream an answer through the openai client; kill -9 the server that writes it after some tokens."""
    from openai import OpenAI

    answer = Answer()
    before = swarm.wire_bytes()
    console.print(f"[bold]{QUESTION}[/bold]", end="", highlight=False)
    with OpenAI(base_url=f"{swarm.url}/v1", api_key=swarm.key, max_retries=0) as client:
        stream = client.chat.completions.create(
            model=name,
            messages=[{"role": "user", "content": QUESTION.removesuffix("\n")}],
            temperature=TEMPERATURE,
            seed=SEED,
            max_tokens=ANSWER_TOKENS,
            stream=True,
            stream_options={"include_usage": True},
            logit_bias={str(END_TOKEN): -100},
            extra_body={"top_k": TOP_K},
        )
        for chunk in stream:
            if chunk.usage is not None:
                answer.num_tokens = chunk.usage.completion_tokens
            if not chunk.choices:
                continue
            piece = chunk.choices[0].delta.content or ""
            answer.text += piece
            answer.times_seconds.append(time.monotonic())
            console.print(piece, end="", highlight=False, markup=False, soft_wrap=True)
            if len(answer.times_seconds) == KILL_AFTER_TOKENS:
                answer.killed = swarm.busiest(["B", "B'"], before)
                answer.killed_at = time.monotonic()
                swarm.servers[answer.killed].kill()
                console.print(f"[red]⟦kill -9 server {answer.killed}⟧[/red]", end="", highlight=False)
    console.print()
    if not answer.killed:
        raise DemoFailed(f"the answer ended after {len(answer.times_seconds)} tokens, before a server could be killed")
    return answer


def link_bytes(swarm: DemoSwarm, answer: Answer) -> dict[str, float]:
    """Bytes per token of each link, both directions together, as counted where frames meet the wire."""
    names = {swarm.peer_of(name): name for name in swarm.servers}
    counted: dict[str, float] = {}
    for (peer, _, _), num_bytes in swarm.wire_bytes().items():
        link = f"interface - {names.get(peer, peer[:8])}"
        counted[link] = counted.get(link, 0.0) + num_bytes
    for peer, traffic in swarm.stop_server("A").items():
        if peer in names:
            counted[f"A - {names[peer]}"] = float(traffic["sent"] + traffic["received"])
    return {link: num_bytes / answer.num_tokens for link, num_bytes in sorted(counted.items())}


def local_answer(folder: Path, num_tokens: int) -> tuple[str, float]:
    """What transformers.generate says on this machine alone, and its tokens per second."""
    torch.set_num_threads(1)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    ids_1T = tokenizer(QUESTION, return_tensors="pt")["input_ids"]
    assert isinstance(ids_1T, torch.Tensor)
    settings = {"do_sample": True, "temperature": TEMPERATURE, "top_k": TOP_K, "suppress_tokens": [END_TOKEN]}
    torch.manual_seed(SEED)
    began_at = time.monotonic()
    generated_1T = model.generate(ids_1T, max_new_tokens=num_tokens, **settings)
    seconds = time.monotonic() - began_at
    text = tokenizer.decode(generated_1T[0, ids_1T.shape[1] :], skip_special_tokens=True)
    assert isinstance(text, str)
    return text, num_tokens / seconds


def table(answer: Answer, links: dict[str, float], local_rate: float) -> Table:
    """The numbers of this run."""
    shown = Table("measured", "value", title="Three servers on this machine, one of them killed")
    shown.add_row("tokens per second through two servers, before the kill", f"{answer.tokens_per_second:.0f}")
    shown.add_row("tokens per second of transformers.generate alone, one thread", f"{local_rate:.0f}")
    shown.add_row(f"stall when server {answer.killed} was killed", f"{answer.stall_seconds * 1000:.0f} ms")
    for link, num_bytes in links.items():
        shown.add_row(f"bytes per token, {link}", f"{num_bytes:.0f}")
    return shown
