"""Clients that vanish, servers that are replaced one by one or leave, and blocks that nobody holds."""

import gc
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from farflung.systems.swarm.view import NoRoute
from tests.loopback.fleet import Fleet, Program, wait_until
from tests.loopback.test_kill import PROMPT, At

pytestmark = pytest.mark.loopback

SCRIPT = """
import sys
import torch
from farflung.apps.library import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], swarm=sys.argv[2])
print(model.generate(torch.tensor([[288, 292, 8]]), max_new_tokens=4, do_sample=False).tolist())
"""


def long(num_tokens: int) -> dict[str, Any]:
    return {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens, "do_sample": False}


def test_the_cache_of_a_client_that_is_killed_is_freed_and_the_other_client_is_unharmed(
    fleet: Fleet, folder: Path, model: Any, whole: Any
) -> None:
    view = model._blocks.view
    other = fleet.start(
        *("generate", str(folder), "--join", fleet.ticket(), "--prompt", "class Tree", "--max-tokens", "1500")
    )

    def kill_the_other() -> None:
        wait_until(lambda: len(other.text) > 100, "the other client writes")
        other.send(signal.SIGSTOP)  # it would have come to its end before servers tell of it
        wait_until(lambda: sum(info.num_sessions for info in view.servers().values()) >= 4, "both sessions are seen")
        other.kill()

    at = At({5: kill_the_other})
    output = model.generate(PROMPT, logits_processor=[at], **long(60))
    assert not at.actions
    assert torch.equal(output, whole.generate(PROMPT, **long(60)))

    def is_all_free() -> bool:
        infos = list(view.servers().values())
        return all(info.num_sessions == 0 and info.cache_tokens_left == info.cache_tokens_max for info in infos)

    wait_until(is_all_free, "what the killed client held is free", seconds=90.0)


def test_an_answer_frees_its_cache_without_waiting_for_the_garbage_collector(fleet: Fleet, model: Any) -> None:
    gc.disable()
    try:
        model.generate(PROMPT, **long(10))
        infos = model._blocks.view.servers
        wait_until(lambda: all(info.num_sessions == 0 for info in infos().values()), "it is freed")
    finally:
        gc.enable()


def test_all_servers_are_replaced_one_by_one_during_one_answer(fleet: Fleet, model: Any, whole: Any) -> None:
    before = list(fleet.servers)

    def replacing(old: Program) -> Callable[[], None]:
        def act() -> None:
            new = fleet.serve(old.blocks)
            fleet.wait_serving(new)
            wait_until(lambda: new.peer in model._blocks.view.servers(), "the client knows the new server")
            old.kill()
            fleet.servers.remove(old)

        return act

    at = At({8 * (number + 1): replacing(old) for number, old in enumerate(before)})
    output = model.generate(PROMPT, logits_processor=[at], **long(60))
    assert torch.equal(output, whole.generate(PROMPT, **long(60)))
    assert not any(server.is_alive for server in before)
    assert len(fleet.servers) == len(before) and not set(map(id, before)) & set(map(id, fleet.servers))


def without_second_half(fleet: Fleet) -> None:
    for server in [server for server in fleet.servers if server.blocks == "2:4"]:
        server.kill()
        fleet.servers.remove(server)


def test_an_answer_waits_for_blocks_without_holder_and_goes_on_when_one_comes(
    fleet: Fleet, model: Any, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[tuple[str, float]] = []

    def on_wait(sentence: str, seconds_left: float) -> None:
        if not waits:
            fleet.serve("2:4")
        waits.append((sentence, seconds_left))

    monkeypatch.setattr(model._blocks.view, "on_wait", on_wait)
    at = At({6: lambda: without_second_half(fleet)})
    output = model.generate(PROMPT, logits_processor=[at], **long(20))
    assert torch.equal(output, whole.generate(PROMPT, **long(20)))
    assert {sentence for sentence, _ in waits} == {
        "No server that takes sessions holds blocks 2:4; start one with --blocks 2:4."
    }
    # Several waits may follow one another, as blocks are there, refuse and are there again: each has its own time.
    assert all(0 < seconds_left <= 60.0 for _, seconds_left in waits)


def test_an_answer_fails_with_the_missing_blocks_when_no_holder_comes(
    fleet: Fleet, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model._blocks, "config", replace(model._blocks.config, wait_seconds_max=2.0))
    at = At({6: lambda: without_second_half(fleet)})
    with pytest.raises(NoRoute, match=r"^(No server that takes sessions holds blocks 2:4|Blocks 2:4 found no server)"):
        model.generate(PROMPT, logits_processor=[at], **long(20))
    assert not at.actions


def test_a_program_that_ends_without_closing_its_connection_leaves_no_trace(fleet: Fleet, folder: Path) -> None:
    script = fleet.folder / "script.py"
    script.write_text(SCRIPT)
    program = fleet.start(str(script), str(folder), fleet.ticket())
    wait_until(lambda: not program.is_alive, "the program ends")
    assert program.text.count("\n") == 1 and program.text.startswith("[[288, 292, 8, "), program.text


def test_servers_leave_in_good_order(fleet: Fleet, model: Any) -> None:
    """A server that is asked to stop is gone from the directory at once."""
    leaving = fleet.servers[0]
    leaving.send(signal.SIGTERM)
    fleet.servers.remove(leaving)
    wait_until(lambda: leaving.peer not in model._blocks.view.servers(), "it is gone from the directory", seconds=20.0)
    wait_until(lambda: not leaving.is_alive, "it ends")
    assert "leaves the swarm" in leaving.text.splitlines()[-1], leaving.text
