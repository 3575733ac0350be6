"""`farflung generate` and `farflung chat`: a model of the swarm, answering in the terminal as it writes."""

import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from farflung.apps.adapters import open_adapter
from farflung.apps.api import advised_sampling
from farflung.apps.drafting import speculation_of
from farflung.apps.library import ConnectedModel, connect_model, load_tokenizer
from farflung.apps.wiring import Connection
from farflung.model.generator import GeneratedToken, GenerationRequest, ModelGenerator, stop_tokens_of
from farflung.model.sample import Sampling
from farflung.model.source import ModelSource
from farflung.model.tokens import StopStrings, TextStream
from farflung.systems.swarm.adapters import NamedAdapter


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How to answer."""

    num_tokens_max: int = 128
    temperature: float | None = None
    """None: as the model's makers advise when chatting, 0 when generating."""
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.num_tokens_max < 1:
            raise ValueError("--max-tokens must be at least 1")

    def sampling(self, advised: Sampling) -> Sampling:
        """The settings, with those that were left open as advised."""
        return Sampling(
            temperature=advised.temperature if self.temperature is None else self.temperature,
            top_k=advised.top_k if self.top_k is None else self.top_k,
            top_p=advised.top_p if self.top_p is None else self.top_p,
            min_p=advised.min_p,
            repetition_penalty=advised.repetition_penalty,
        )


class Speaker:
    """A connected model with its tokenizer."""

    def __init__(self, connected: ConnectedModel, draft: str, adapter: NamedAdapter | None = None) -> None:
        self.connected = connected
        self.tokenizer = load_tokenizer(connected.source)
        self._generator = ModelGenerator(
            connected.model,
            open_cache=partial(connected.open_cache, adapter=adapter),
            speculation=speculation_of(draft, connected),
        )
        self._stop_tokens = stop_tokens_of(connected.model)

    def speak(self, prompt: tuple[int, ...], wish: Wish, advised: Sampling, write: Callable[[str], object]) -> str:
        """Write the answer piece by piece as it comes; returns all of it.

        Raises:
            ValueError: the prompt does not fit the context.
            FarflungError: the blocks cannot be reached.
        """
        room = self._generator.context_length_max - len(prompt)
        if room < 1:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens, and the model takes at most "
                f"{self._generator.context_length_max} of prompt and answer together: shorten the prompt"
            )
        request = GenerationRequest(
            prompt=prompt,
            num_tokens_max=min(wish.num_tokens_max, room),
            sampling=wish.sampling(advised),
            seed=secrets.randbits(31) if wish.seed is None else wish.seed,
            stop_tokens=self._stop_tokens,
        )
        return self._write(request, wish, write)

    def _write(self, request: GenerationRequest, wish: Wish, write: Callable[[str], object]) -> str:
        stream, stop = TextStream(self.tokenizer, request.prompt), StopStrings(wish.stop)
        pieces: list[str] = []

        def take(text: str) -> None:
            pieces.append(text)
            write(text)

        def is_last(row: int, token: int) -> bool:
            take(stop.push(stream.push(token)))
            return stop.is_complete

        for step in self._generator.stream(request, is_last):
            assert isinstance(step, GeneratedToken), "no prompt is scored here"
        if not stop.is_complete:
            take(stop.push(stream.finish()) + stop.finish())
        return "".join(pieces)


@contextmanager
def speaker_of(model: str, ticket: str, draft: str, adapter_folder: Path | None) -> Iterator[Speaker]:
    """A model of the swarm, connected, under an adapter if there is one."""
    source = ModelSource.open(model)
    adapter = open_adapter(adapter_folder, source) if adapter_folder is not None else None
    waiting = Console(stderr=True)

    def on_wait(sentence: str, seconds_left: float) -> None:
        waiting.print(f"[dim]waiting up to {seconds_left:.0f} s more: {sentence}[/dim]", end="\r")

    with Connection(ticket) as connection:
        yield Speaker(connect_model(source, connection, on_wait=on_wait), draft, adapter)


def generate(model: str, ticket: str, prompt: str, wish: Wish, draft: str, adapter: Path | None = None) -> None:
    """Print the continuation of `prompt`; `draft` as `speculation_of` takes it.

    Raises:
        ValueError: an unknown model, a bad ticket, an empty or too long prompt, an adapter that does not fit.
        FarflungError: the swarm cannot be reached.
    """
    with speaker_of(model, ticket, draft, adapter) as speaker:
        tokens = speaker.tokenizer.encode(prompt)
        speaker.speak(tuple(tokens), wish, Sampling(temperature=0.0), _write_now)
        print()


def chat(model: str, ticket: str, system: str | None, wish: Wish, draft: str, adapter: Path | None = None) -> None:
    """Talk until the end of input or an interrupt between two answers.

    Raises:
        ValueError: an unknown model, a bad ticket, a tokenizer without chat template, an adapter that does not fit.
        FarflungError: the swarm cannot be reached.
    """
    console = Console()
    with speaker_of(model, ticket, draft, adapter) as speaker:
        if speaker.tokenizer.chat_template is None:
            raise ValueError(f"the tokenizer of {model} has no chat template: use `farflung generate`")
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        console.print("[dim]An empty line or Ctrl-D ends the conversation.[/dim]")
        while line := _read_line(console):
            messages.append({"role": "user", "content": line})
            text = speaker.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            tokens = speaker.tokenizer.encode(str(text), add_special_tokens=False)
            answer = speaker.speak(tuple(tokens), wish, advised_sampling(speaker.connected), _write_now)
            print()
            messages.append({"role": "assistant", "content": answer})


def _read_line(console: Console) -> str:
    try:
        return console.input("[bold]> [/bold]").strip()
    except EOFError:
        return ""


def _write_now(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
