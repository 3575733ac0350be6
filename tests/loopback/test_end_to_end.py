"""Real processes from end to end: servers, the HTTP interface, and clients, whose words are those of one machine."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from openai import OpenAI
from transformers import AutoModelForCausalLM, AutoTokenizer

from farflung import AutoModelForCausalLM as RemoteModel
from farflung.apps.demo.swarm import DemoSwarm
from farflung.apps.fork_server import ForkServer
from farflung.apps.processes import Supervisor
from farflung.apps.tickets import invite
from farflung.wire.ticket import SwarmAuthority, Ticket
from tests.apps.tiny import save_tiny_model
from tests.forge import run
from tests.loopback.fleet import wait_until

pytestmark = pytest.mark.loopback

PROMPT = "def main(arguments):\n"
NO_END = {"0": -100}
"""Forbids the end mark, so that an answer is as long as it may be."""


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("end-to-end") / "tiny", context_length_max=1024)


@pytest.fixture(scope="module")
def swarm(model_folder: Path, forge: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoSwarm]:
    folder = tmp_path_factory.mktemp("swarm")
    with Supervisor(folder, forge) as supervisor:
        swarm = DemoSwarm(supervisor, model_folder, 4, folder)
        swarm.start()
        yield swarm
    assert not any(child.is_running for child in swarm.servers.values())


@pytest.fixture(scope="module")
def client(swarm: DemoSwarm) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{swarm.url}/v1", api_key=swarm.key, max_retries=0, timeout=300) as client:
        yield client


def local_answer(folder: Path, prompt: str, num_tokens: int, *, is_end_forbidden: bool = False) -> str:
    """What transformers alone answers, greedily."""
    torch.set_num_threads(1)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    forbidden = {"suppress_tokens": [0]} if is_end_forbidden else {}
    generated = model.generate(ids, max_new_tokens=num_tokens, do_sample=False, **forbidden)
    return tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True)


def ticket(swarm: DemoSwarm, role: str) -> str:
    return invite((swarm.folder / "ticket").read_text().strip(), role, "1h", None)


def test_a_streamed_chat_has_the_words_of_one_machine(swarm: DemoSwarm, client: OpenAI, model_folder: Path) -> None:
    chunks = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": PROMPT}], temperature=0, max_tokens=48, stream=True
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == local_answer(model_folder, PROMPT + "\n", 48)


def test_an_answer_says_which_way_it_took(swarm: DemoSwarm, client: OpenAI) -> None:
    asked: Any = {"model": "tiny", "prompt": PROMPT, "max_tokens": 12, "logit_bias": NO_END}
    answer = client.completions.with_raw_response.create(**asked)
    first = swarm.peer_of("A")
    line = answer.headers["x-farflung-route"]
    assert line.isascii() and line.startswith(f"{first[:8]}[0:2] ") and "[2:4] " in line and "; step " in line
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    (told,) = [extra["farflung"]["route"] for chunk in chunks if "farflung" in (extra := chunk.model_extra or {})]
    assert [hop["blocks"] for hop in told["hops"]] == [[0, 2], [2, 4]]
    assert told["hops"][0]["peer"] == first
    assert told["hops"][1]["peer"] in (swarm.peer_of("B"), swarm.peer_of("B'"))
    busy = sum(hop["compute_ms"] + hop["queue_ms"] for hop in told["hops"])
    assert 0 < busy <= told["step_ms"] and told["way_ms"] == pytest.approx(told["step_ms"] - busy, abs=0.01)


def test_embeddings_are_those_of_one_machine(client: OpenAI, model_folder: Path) -> None:
    texts = [PROMPT, "class Tree:\n    pass\n" * 5]
    answer = client.embeddings.create(model="tiny", input=texts)
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    for one, text in zip(answer.data, texts, strict=True):
        with torch.inference_mode():
            mean_H = model.base_model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0)
        assert one.embedding == pytest.approx((mean_H / mean_H.norm()).tolist(), abs=1e-5)


def test_a_stream_that_breaks_goes_on(swarm: DemoSwarm, client: OpenAI, model_folder: Path) -> None:
    asked: Any = {"model": "tiny", "prompt": PROMPT, "temperature": 0, "max_tokens": 80, "logit_bias": NO_END}
    last, text = "", ""
    key = {"Authorization": f"Bearer {swarm.key}"}
    with httpx.stream(
        "POST", f"{swarm.url}/v1/completions", json=asked | {"stream": True}, headers=key, timeout=300
    ) as answer:
        for line in answer.iter_lines():
            if line.startswith("id: "):
                last = line.removeprefix("id: ")
            elif line.startswith("data: "):
                text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
            if last.endswith("-10") and not line:
                break
    rest = client.completions.create(**asked, stream=True, extra_headers={"Last-Event-ID": last})
    text += "".join(chunk.choices[0].text for chunk in rest)
    assert text == local_answer(model_folder, PROMPT, 80, is_end_forbidden=True)


def test_answers_keep_their_form(client: OpenAI) -> None:
    schema: Any = {"type": "object", "properties": {"far": {"type": "boolean"}}, "required": ["far"]}
    schema["additionalProperties"] = False
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": PROMPT}],
        response_format={"type": "json_schema", "json_schema": {"name": "place", "schema": schema}},
    )
    assert json.loads(answer.choices[0].message.content or "")["far"] in (True, False)


def test_the_command_line_has_them_too_with_a_ticket_for_clients(
    swarm: DemoSwarm, model_folder: Path, forge: ForkServer, tmp_path: Path
) -> None:
    arguments = ("generate", str(model_folder), "--prompt", PROMPT, "--max-tokens", "24")
    done = run(forge, tmp_path, *arguments, FARFLUNG_TICKET=ticket(swarm, "client"))
    assert done.status == 0, done.text
    assert done.text == local_answer(model_folder, PROMPT, 24) + "\n"


def test_guessing_ahead_leaves_them_as_they_are(
    swarm: DemoSwarm, model_folder: Path, forge: ForkServer, tmp_path: Path
) -> None:
    access = {"FARFLUNG_TICKET": ticket(swarm, "client")}
    arguments = ("generate", str(model_folder), "--prompt", PROMPT, "--max-tokens", "24")
    expected = local_answer(model_folder, PROMPT, 24) + "\n"
    for draft in ("lookup", str(model_folder)):
        done = run(forge, tmp_path, *arguments, "--draft", draft, **access)
        assert (done.status, done.text) == (0, expected)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    other = tmp_path / "other"
    shutil.copytree(model_folder, other)
    tokenizer.add_tokens(["elsewhere"])
    tokenizer.save_pretrained(other)
    done = run(forge, tmp_path, *arguments, "--draft", str(other), **access)
    assert done.status == 2 and "it has another vocabulary: give --draft a small model of the same family" in done.text


def test_a_conversation_in_the_terminal_has_them_too(swarm: DemoSwarm, model_folder: Path) -> None:
    command = [sys.executable, "-m", "farflung", "chat", str(model_folder), "--temperature", "0", "--max-tokens", "16"]
    variables = {**os.environ, "FARFLUNG_TICKET": ticket(swarm, "client")}
    typed = PROMPT.strip() + "\n"
    done = subprocess.run(command, env=variables, input=typed, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("> ", 1)[1].startswith(local_answer(model_folder, PROMPT, 16))


def test_python_has_them_too(swarm: DemoSwarm, model_folder: Path) -> None:
    model: Any = RemoteModel.from_pretrained(str(model_folder), swarm=ticket(swarm, "client"))
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    generated = model.generate(ids, max_new_tokens=24, do_sample=False)
    text = tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True)
    assert text == local_answer(model_folder, PROMPT, 24)


def test_status_lists_the_servers(swarm: DemoSwarm, forge: ForkServer, tmp_path: Path) -> None:
    done = run(forge, tmp_path, "status", "--json", "--join", ticket(swarm, "client"))
    assert done.status == 0, done.text
    servers = {server["peer"]: server for server in json.loads(done.text)["servers"]}
    assert {name: servers[swarm.peer_of(name)]["blocks"] for name in swarm.servers} == {
        "A": [0, 2],
        "B": [2, 4],
        "B'": [2, 4],
    }
    shown = run(forge, tmp_path, "status", "--join", ticket(swarm, "client"))
    assert "servers per block: 1122" in " ".join(shown.text.split())


def test_a_ticket_of_another_swarm_is_refused_with_the_reason(
    swarm: DemoSwarm, forge: ForkServer, tmp_path: Path
) -> None:
    now = time.time()
    meetings = Ticket.parse(ticket(swarm, "client"), now).meetings
    other = SwarmAuthority.found("other", now).ticket(meetings, now + 600, now)
    done = run(forge, tmp_path, "status", "--join", other.text())
    assert done.status == 2
    (line,) = done.text.splitlines()
    assert "is of another swarm, or its ticket has expired" in line


def test_a_clients_ticket_does_not_let_one_serve_unnoticed(
    swarm: DemoSwarm, model_folder: Path, forge: ForkServer, tmp_path: Path
) -> None:
    done = run(forge, tmp_path, "serve", str(model_folder), "--blocks", "0:2", "--join", ticket(swarm, "client"))
    assert done.status == 2
    assert "a client ticket does not let this node serve" in done.text


def test_the_answer_goes_on_with_the_same_words_when_its_server_is_killed(
    swarm: DemoSwarm, client: OpenAI, model_folder: Path
) -> None:
    before = swarm.wire_bytes()
    stream = client.completions.create(
        model="tiny", prompt=PROMPT, temperature=0, max_tokens=900, stream=True, logit_bias=NO_END
    )
    text, killed = "", ""
    for number, chunk in enumerate(stream):
        text += chunk.choices[0].text
        if number == 10:  # early in a long answer, which does not wait for who reads it
            killed = swarm.busiest(["B", "B'"], before)
            swarm.servers[killed].kill()
    assert text == local_answer(model_folder, PROMPT, 900, is_end_forbidden=True)
    assert killed

    def is_counted() -> bool:
        """It is when the answer's caches are closed, which may be after its last word."""
        metrics = httpx.get(f"{swarm.url}/metrics", timeout=120).text
        reroutes = next(line for line in metrics.splitlines() if line.startswith("farflung_reroutes_total "))
        return float(reroutes.split()[1]) >= 1

    wait_until(is_counted, "the reroute is counted")


def test_an_interrupted_server_leaves_and_the_interface_says_what_is_missing(swarm: DemoSwarm) -> None:
    left = next(name for name in ("B", "B'") if swarm.servers[name].is_running)
    child = swarm.servers[left]
    child.signal(signal.SIGINT)
    assert child.process.wait(timeout=120) == 130
    assert child.lines()[-1].startswith("leaves the swarm")
    deadline = time.monotonic() + 120  # the lease of the server that was killed is 30 s
    while (answer := httpx.get(f"{swarm.url}/health", timeout=120)).status_code == 200:
        assert time.monotonic() < deadline, "health still says that all is well"
    assert answer.status_code == 503
    assert "2:4" in answer.json()["reasons"]["tiny"]
