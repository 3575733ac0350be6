"""The processes that are one worker together: a `torchrun` group, or processes that the first of them has started.

The first rank takes the seat, draws the data and speaks to other machines. It tells the others what to do and does it
with them, so that all ranks make the same collective calls in the same order:

    rank 0    seat, data, engine ── tell(order) ── perform(order) ──> engine
    others                          hear()      ── perform(order)
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol, TypeVar, cast

import torch
from torch import distributed

from farflung.apps.processes import CommandFailed, Supervisor
from farflung.apps.runs.seats import NUM_RANKS_VARIABLE

LOCAL_RANK = "LOCAL_RANK"
"""Which of a machine's processes of a group this is; `torchrun` tells it."""
LOOPBACKS = {"linux": "lo", "darwin": "lo0"}
LOOK_SECONDS = 0.1
END_SECONDS = 10.0
SILENT_DAYS_MAX = 365
"""The others wait for an order as long as the first rank waits for other machines; a dead one is noticed at once."""


T = TypeVar("T")


class Begin(Protocol):
    """What a first rank tells first."""

    def follow(self, group: "Group") -> None:
        """On every other rank: do what the first one tells from now on, until it tells the end."""
        ...


@dataclass(frozen=True, slots=True)
class End:
    """The worker's part is done."""


class Group:
    """One rank's view of its group. Collective calls, like those of `torch.distributed`."""

    def __init__(self, supervisor: Supervisor | None = None) -> None:
        """Join the process group that is there; `supervisor`: of the other ranks, if this one has started them."""
        from farflung.learn.redistribute import Site  # with much of torch that one process does without

        self.site = Site()
        self.rank, self.num_ranks = self.site.rank, self.site.num_ranks
        self.local_rank = int(os.environ.get(LOCAL_RANK, "0"))
        self._supervisor = supervisor
        silence = timedelta(days=SILENT_DAYS_MAX)
        control = distributed.new_group(backend="gloo", timeout=silence)
        assert isinstance(control, distributed.ProcessGroup)
        self._control = control
        self.turn = threading.Lock()
        """Held by the first rank from telling an order to its end."""

    def tell(self, order: object) -> None:
        """On the first rank: let all others hear this."""
        distributed.broadcast_object_list([order], src=0, group=self._control)

    def hear(self) -> object:
        """On every other rank: wait for what the first one tells.

        Raises:
            CommandFailed: it is gone.
        """
        heard: list[object] = [None]
        try:
            distributed.broadcast_object_list(heard, src=0, group=self._control)
        except RuntimeError as error:
            raise CommandFailed(f"the first rank of this group is gone ({str(error).splitlines()[0]})") from None
        return heard[0]

    def follow(self) -> None:
        """On every other rank: take part until the first one says that it is over.

        Raises:
            CommandFailed: the first rank is gone.
        """
        begin = self.hear()
        if not isinstance(begin, End):
            cast(Begin, begin).follow(self)

    def end(self) -> None:
        """Leave; the first rank lets the others go, unless they are in the middle of something."""
        if self.rank == 0:
            if not self.turn.acquire(timeout=END_SECONDS):
                return
            with suppress(RuntimeError):  # a signal may have ended them already
                self.tell(End())
        distributed.destroy_process_group()

    def deal(self, received: torch.Tensor, parts: Sequence[torch.Tensor] | None) -> None:
        """Fill `received` with this rank's part of those that the first rank gives; the others give None."""
        distributed.scatter(received, None if parts is None else list(parts), src=0, group=self._control)

    def mean(self, value: float) -> float:
        """Over all ranks."""
        total = torch.tensor(value, dtype=torch.float64)
        distributed.all_reduce(total, group=self._control)
        return total.item() / self.num_ranks

    def check(self) -> None:
        """On a first rank that has started the others.

        Raises:
            ChildFailed: one of them has ended.
        """
        if self._supervisor is not None:
            self._supervisor.check()


@contextmanager
def open_group(num_ranks: int, folder: Path) -> Iterator[Group | None]:
    """The group of this process: that of `torchrun`, one of `num_ranks` processes started here, or None for one alone.

    `folder` gets a log of every process that is started.

    Raises:
        ValueError: `num_ranks` below 1, or given to a process of a group.
    """
    if num_ranks < 1:
        raise ValueError(f"a worker needs at least one process: --ranks {num_ranks} is too few")
    if int(os.environ.get(NUM_RANKS_VARIABLE, "1")) > 1:
        if num_ranks > 1:
            raise ValueError("torchrun has started this group already: leave out --ranks")
        distributed.init_process_group(_backend())
        group = Group()
        yield group
        group.end()
    elif num_ranks > 1:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="farflung-group-") as meeting, Supervisor(folder) as supervisor:
            store = f"{meeting}/store"
            _start_others(supervisor, num_ranks, store)
            group = watched(supervisor, lambda: meet(store, 0, num_ranks, supervisor))
            yield group
            group.end()
    else:
        yield None


def meet(store: str, rank: int, num_ranks: int, supervisor: Supervisor | None = None) -> Group:
    """Find the others through a file."""
    distributed.init_process_group(_backend(), init_method=f"file://{store}", rank=rank, world_size=num_ranks)
    return Group(supervisor)


def watched(supervisor: Supervisor, make: Callable[[], T]) -> T:
    """What `make` gives, which waits for the children.

    Raises:
        ChildFailed: one of them has ended.
    """
    made: Future[T] = Future()

    def fulfil() -> None:
        try:
            made.set_result(make())
        except (RuntimeError, ValueError) as error:  # what torch raises
            made.set_exception(error)

    # Waiting for a process that is gone, torch would wait for half an hour, and cannot be interrupted.
    threading.Thread(target=fulfil, name="farflung-group", daemon=True).start()
    while not wait([made], LOOK_SECONDS).done:
        supervisor.check()
    return made.result()


def _start_others(supervisor: Supervisor, num_ranks: int, store: str) -> None:
    """This process becomes the first rank; the others end when it does."""
    if sys.platform in LOOPBACKS:  # a machine's own name may lead nowhere, and these are all on this one
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACKS[sys.platform])
    for rank in range(1, num_ranks):
        command = [sys.executable, "-m", "farflung.apps.runs.follow", store, str(rank), str(num_ranks)]
        supervisor.start(f"rank-{rank}", command, {LOCAL_RANK: str(rank)})


def _backend() -> str:
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
