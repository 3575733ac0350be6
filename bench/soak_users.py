"""Users of the HTTP interface and Python clients that ask without end, and know what each answer has to be."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import torch
from fastapi.testclient import TestClient

from farflung.apps.http.app import build_app
from farflung.apps.http.engine import Engine
from farflung.apps.library import load_tokenizer
from farflung.model.generator import ModelGenerator
from farflung.model.source import ModelSource

SHARED_TOKENS = 150
STUCK_SECONDS = 180.0
"""A request that has no answer after so long is stuck."""
PAUSE_SECONDS_MAX = 1.0
Body = dict[str, Any]


@dataclass
class Seen:
    """What all users have met, guarded by its lock."""

    counts: Counter[str] = field(default_factory=Counter[str])
    first_seconds: list[float] = field(default_factory=list[float])
    """Times to first tokens."""
    between_seconds: list[float] = field(default_factory=list[float])
    """Times between tokens."""
    problems: list[str] = field(default_factory=list[str])
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str, number: int = 1) -> None:
        with self.lock:
            self.counts[what] += number

    def problem(self, kind: str, sentence: str) -> None:
        """A wrong, failed or stuck request."""
        with self.lock:
            self.counts[kind] += 1
            self.problems.append(f"{kind}: {sentence}")

    def time(self, first: float, between: Sequence[float]) -> None:
        with self.lock:
            self.first_seconds.append(first)
            self.between_seconds += between


def requests_of(vocabulary_size: int, name: str, num_requests: int) -> list[Body]:
    """Bodies of completions: greedy or drawn, of one row or two; half of them begin with the same text."""
    stream = random.Random(1)
    shared = [stream.randrange(2, vocabulary_size) for _ in range(SHARED_TOKENS)]
    bodies: list[Body] = []
    for number in range(num_requests):
        own = [stream.randrange(2, vocabulary_size) for _ in range(stream.randint(4, 120))]
        drawn: Body = {"temperature": 0.8, "seed": number} if number % 3 == 2 else {"temperature": 0.0}
        body: Body = {"model": name, "prompt": [*shared * (number % 2), *own], "max_tokens": stream.randint(8, 40)}
        bodies.append({**body, **drawn, "n": 2 if number % 8 == 5 else 1})
    return bodies


def answers_here(source: ModelSource, whole: Any, bodies: Sequence[Body]) -> list[list[str]]:
    """The answers that the same interface gives over the whole model in this process."""
    engine = Engine(source.name, ModelGenerator(whole), load_tokenizer(source))
    with TestClient(build_app({source.name: engine})) as here:
        return [_texts(here.post("/v1/completions", json=body)) for body in bodies]


def _texts(response: Any) -> list[str]:
    response.raise_for_status()
    return [choice["text"] for choice in sorted(response.json()["choices"], key=lambda choice: choice["index"])]


class HttpUser:
    """Asks one thing after another: whole answers, streams, and streams that are given up."""

    def __init__(self, url: str, bodies: Sequence[Body], expected: Sequence[list[str]], seen: Seen, seed: int) -> None:
        self._bodies, self._expected, self._seen = bodies, expected, seen
        self._random = random.Random(f"user {seed}")
        self._client = httpx.Client(base_url=url, timeout=STUCK_SECONDS)

    def ask(self) -> None:
        """One request."""
        time.sleep(self._random.uniform(0, PAUSE_SECONDS_MAX))
        number, way = self._random.randrange(len(self._bodies)), self._random.random()
        body, expected = self._bodies[number], self._expected[number]
        try:
            if way < 0.4:
                said = _texts(self._client.post("/v1/completions", json=body))
            else:
                said = self._stream(body, is_given_up=way > 0.85)
        except httpx.TimeoutException as error:
            self._seen.problem("stuck", f"request {number}: {error}")
            return
        except httpx.HTTPError as error:
            self._seen.problem("failed", f"request {number}: {error}")
            return
        kind = "greedy" if body["temperature"] == 0 else "drawn"
        if said is None:
            self._seen.count("given up")
            return
        self._seen.count(f"{kind} answers")
        self._seen.count("tokens", body["max_tokens"] * body["n"])
        if said != expected:
            self._seen.problem("wrong", f"{kind} request {number}: {said} instead of {expected}")

    def _stream(self, body: Body, *, is_given_up: bool) -> list[str] | None:
        """The texts of a stream, None if it was given up; its times are noted."""
        texts, times = [""] * body["n"], [time.perf_counter()]
        num_wanted = self._random.randint(1, 8) if is_given_up else None
        with self._client.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
            response.raise_for_status()
            for line in response.iter_lines():
                if not line.startswith("data: ") or line.endswith("[DONE]"):
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "choices" not in event:
                    raise httpx.RemoteProtocolError(str(event))
                times.append(time.perf_counter())
                for choice in event["choices"]:
                    texts[choice["index"]] += choice["text"]
                if num_wanted is not None and len(times) > num_wanted:
                    return None
        between = [later - earlier for earlier, later in itertools.pairwise(times[1:])]
        self._seen.time(times[1] - times[0], between)
        return texts


class PythonUser:
    """A program with the model in hand: beams, guesses by lookup, batches with padding."""

    WAYS: Sequence[Body] = (
        {},
        {"num_beams": 3},
        {"prompt_lookup_num_tokens": 3},
        {"num_return_sequences": 2, "num_beams": 2},
    )

    def __init__(self, model: Any, whole: Any, bodies: Sequence[Body], seen: Seen, seed: int) -> None:
        self._model, self._seen = model, seen
        self._random = random.Random(f"program {seed}")
        self._tasks: list[tuple[torch.Tensor, Body, torch.Tensor]] = []
        for number, body in enumerate(bodies[:12]):
            prompt = torch.tensor([body["prompt"]])
            options = {
                "max_new_tokens": 16,
                "do_sample": False,
                "pad_token_id": 0,
                **self.WAYS[number % len(self.WAYS)],
            }
            self._tasks.append((prompt, options, whole.generate(prompt, **options)))

    def ask(self) -> None:
        """One generation."""
        time.sleep(self._random.uniform(0, 2 * PAUSE_SECONDS_MAX))
        prompt, options, expected = self._random.choice(self._tasks)
        said = self._model.generate(prompt, **options)
        self._seen.count("programs' answers")
        if not torch.equal(said, expected):
            self._seen.problem("wrong", f"{options}: {said.tolist()} instead of {expected.tolist()}")


@dataclass
class Crowd:
    """Users that ask until told to stop, each in a thread."""

    asks: Sequence[Callable[[], None]]
    seen: Seen
    _is_over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list[threading.Thread])

    def begin(self) -> None:
        self._threads = [threading.Thread(target=self._go_on, args=(ask,), daemon=True) for ask in self.asks]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Let each finish what it is at."""
        self._is_over.set()
        for thread in self._threads:
            thread.join(STUCK_SECONDS)
            if thread.is_alive():
                self.seen.problem("stuck", "a user whose last request never ended")

    def _go_on(self, ask: Callable[[], None]) -> None:
        while not self._is_over.is_set():
            try:
                ask()
            except Exception as error:  # noqa: BLE001  whatever it is, the run goes on and the report names it
                self.seen.problem("failed", f"{type(error).__name__}: {error}")
