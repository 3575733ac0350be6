"""What every test stands on: no network, one thread, a home of its own, and no process left behind."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Read when torch and transformers are imported, which is later: tests of the lower layers load neither.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import psutil
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from farflung.apps.fork_server import ForkServer
    from tests.scheduling import FilesTogether

# A shell that starts the suite in the background has it ignore Ctrl-C, and so would the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# One run finds what the next one finds; the machine may be busy, so no example has a deadline of its own.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.load_profile("suite")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> "FilesTogether":
    """With `--numprocesses 2`: see `tests.scheduling`."""
    from tests.scheduling import FilesTogether

    config.option.loadscopereorder = False
    return FilesTogether(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with tests of real processes, which take longest, and skip what cannot run here."""
    items.sort(key=lambda item: item.get_closest_marker("loopback") is None)
    _give_second_tries(items)
    _skip_without_accelerator(items)


def _give_second_tries(items: list[pytest.Item]) -> None:
    """To tests of real processes alone: what else the machine does may cost them a deadline, once.

    The end of the run names those that needed it (RERUN): each is a fault to be found, in the test or beneath it.
    """
    for item in items:
        if item.get_closest_marker("loopback"):
            item.add_marker(pytest.mark.flaky(reruns=1))


def _skip_without_accelerator(items: list[pytest.Item]) -> None:
    """Torch is loaded only when a test that needs an accelerator is collected."""
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if not needing:
        return
    import torch

    if not torch.cuda.is_available():
        for item in needing:
            item.add_marker(pytest.mark.skip(reason="no accelerator here"))


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests away from the user's keys, journals and tickets."""
    monkeypatch.setenv("FARFLUNG_HOME", str(tmp_path / "farflung-home"))
    monkeypatch.delenv("FARFLUNG_TICKET", raising=False)


@pytest.fixture(scope="session")
def forge() -> "Iterator[ForkServer]":
    """Has imported everything, and forks commands: see `tests.forge`."""
    from tests.forge import open_forge

    with open_forge() as forge:
        yield forge


def _is_tracker(child: psutil.Process) -> bool:
    try:
        return "multiprocessing.resource_tracker" in " ".join(child.cmdline())
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="session", autouse=True)
def no_process_left() -> Iterator[None]:
    """Fail the run, after ending them, if child processes outlive the tests that started them.

    Each of several processes that run the suite sees its own children alone.
    """
    yield
    children = psutil.Process().children(recursive=True)
    # Python's own tracker of shared memory stays until this process ends: it is not waited for.
    _, left = psutil.wait_procs([child for child in children if not _is_tracker(child)], timeout=60)
    commands = [" ".join(child.cmdline()) for child in left]
    for child in left:
        child.kill()
    assert not commands, f"processes left behind: {commands}"
