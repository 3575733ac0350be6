"""One small model, one fleet of real processes and one client for all tests of this folder."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM as Whole

from farflung.apps.fork_server import ForkServer
from farflung.apps.library import AutoModelForCausalLM
from tests.apps.tiny import save_tiny_model
from tests.loopback.fleet import Fleet, wait_until
from tests.loopback.pretraining import Command

CONTEXT_LENGTH_MAX = 2048


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of four blocks, with a tokenizer."""
    torch.set_num_threads(1)
    return save_tiny_model(tmp_path_factory.mktemp("tiny"), context_length_max=CONTEXT_LENGTH_MAX)


@pytest.fixture(scope="session")
def whole(folder: Path) -> Any:
    """The same model on this machine."""
    model = Whole.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.data = weight.data.clone()  # the alignment of mapped files changes how kernels group their sums
    return model


@pytest.fixture(scope="package")
def processes(folder: Path, forge: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    other_folder = save_tiny_model(tmp_path_factory.mktemp("other"), num_blocks=1)
    fleet = Fleet(tmp_path_factory.mktemp("fleet"), folder, other_folder, forge)
    try:
        fleet.found()
        yield fleet
    finally:
        fleet.close()


@pytest.fixture(scope="package")
def model(processes: Fleet, folder: Path) -> Any:
    """A client in this process."""
    return AutoModelForCausalLM.from_pretrained(str(folder), swarm=processes.ticket())


@pytest.fixture
def fleet(processes: Fleet, model: Any) -> Fleet:
    """The processes, complete again after what the test before did to them, and all known to the client."""
    processes.complete()
    wait_until(lambda: processes.sees(model._blocks.view.servers()), "the client knows all servers")
    return processes


@pytest.fixture
def lead(tmp_path: Path, commands: list[Command], forge: ForkServer) -> Callable[..., Command]:
    """Starts a command that leads a run, with these arguments; it is stopped at the end of the test."""

    def start(*arguments: str, kind: str = "pretrain", variables: Mapping[str, str] = MappingProxyType({})) -> Command:
        commands.append(Command(tmp_path, *arguments, kind=kind, forge=forge, variables=variables))
        return commands[-1]

    return start


@pytest.fixture
def commands() -> Iterator[list[Command]]:
    """Those appended here are stopped at the end of the test."""
    started: list[Command] = []
    yield started
    for command in started:
        command.close()
