"""An asyncio event loop on virtual time: when nobody has anything to do, the clock jumps to the next timer.

Callbacks run in the order in which they were asked for, timers of one moment too, so that one program has one history.
Every callback belongs to a simulated process (through its context), which can be frozen and killed.
"""

import asyncio
import contextvars
import heapq
import itertools
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable
from typing import Any, NoReturn

from farflung.sim.errors import NothingCanHappen, NotSimulated, SimulationError, TimeStandsStill
from farflung.sim.process import Process, ProcessHandle

CALLBACKS_PER_MOMENT_MAX = 1_000_000
"""More callbacks than this without virtual time passing are a loop that never ends."""


class VirtualLoop(asyncio.AbstractEventLoop):
    """The loop; `time()` is virtual seconds since the simulation began."""

    def __init__(self) -> None:
        self._now = 0.0
        self._sequence = 0
        self._ready: deque[ProcessHandle] = deque()
        self._timers: list[tuple[float, int, ProcessHandle]] = []
        self._is_running = False
        self._is_stopping = False
        self._is_closed = False
        self._callbacks_this_moment = 0
        self._failure: BaseException | None = None
        self.tasks: dict[asyncio.Task[Any], None] = {}
        """Tasks not yet done, in order of creation."""

    # Time and callbacks

    def time(self) -> float:
        return self._now

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = ProcessHandle(self._now, callback, args, self, context, is_timer=False)
        self._ready.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        handle = ProcessHandle(when, callback, args, self, context, is_timer=True)
        self._sequence += 1
        heapq.heappush(self._timers, (when, self._sequence, handle))
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[Any]:
        context = contextvars.copy_context() if context is None else context
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        process = Process.of(context)
        for living in [self.tasks] if process is None else [self.tasks, process.tasks]:
            living[task] = None
            task.add_done_callback(lambda task, living=living: living.pop(task, None))
        return task

    # Running

    def check_can_run(self) -> None:
        """Raises SimulationError when the loop cannot be run from here."""
        if self._is_closed:
            raise SimulationError("the simulation was closed: make a new one")
        if self._is_running or asyncio._get_running_loop() is not None:
            raise SimulationError("the simulation cannot be run from within a running event loop: await instead")

    def run_forever(self, *, is_ending: bool = False) -> None:
        """Run until `stop`; with `is_ending` only what is ready, without any time passing."""
        self.check_can_run()
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(finalizer=self._close_generator)
        asyncio._set_running_loop(self)
        self._is_running = True
        try:
            while not self._is_stopping and not (is_ending and not self._ready):
                self._run_next()
        finally:
            self._is_running = self._is_stopping = False
            asyncio._set_running_loop(None)
            sys.set_asyncgen_hooks(*hooks)
        failure = self.take_failure()
        if failure is not None:
            raise failure

    def _run_next(self) -> None:
        if not self._ready:
            self._jump()
        handle = self._ready.popleft()
        if handle.cancelled():
            return
        if handle.process is not None and handle.process.is_frozen:
            handle.process.held.append(handle)
            return
        self._callbacks_this_moment += 1
        if self._callbacks_this_moment > CALLBACKS_PER_MOMENT_MAX:
            raise TimeStandsStill(f"over {CALLBACKS_PER_MOMENT_MAX} callbacks at {self._now} s; the next is {handle!r}")
        handle.run()

    def _jump(self) -> None:
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        if not self._timers:
            raise NothingCanHappen(f"nothing can ever happen after {self._now} s")
        when, _, handle = heapq.heappop(self._timers)
        if when > self._now:
            self._now = when
            self._callbacks_this_moment = 0
        self._ready.append(handle)

    def stop(self) -> None:
        self._is_stopping = True

    def is_running(self) -> bool:
        return self._is_running

    def is_closed(self) -> bool:
        return self._is_closed

    def end(self) -> BaseException | None:
        """Cancel all tasks, let them see it, and close; returns an error that nobody has caught."""
        for task in list(self.tasks):
            task.cancel()
        failure = None
        while self._ready:
            try:
                self.run_forever(is_ending=True)
            except Exception as error:  # noqa: BLE001 - whatever tasks raise while they end is handed to the caller
                failure = failure or error
        self.close()
        return failure

    def close(self) -> None:
        self._is_closed = True
        self._ready.clear()
        self._timers.clear()

    def _close_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        if not self._is_closed:
            self.create_task(generator.aclose())

    # Processes

    def freeze(self, process: Process) -> None:
        """Hold back whatever `process` has to do."""
        process.is_frozen = True

    def thaw(self, process: Process) -> None:
        """Let `process` do, in order, what it was held back from."""
        process.is_frozen = False
        self._ready.extend(process.held)
        process.held.clear()

    def kill(self, processes: Iterable[Process]) -> None:
        """End processes, one after another: their timers never fire, their tasks are cancelled, oldest first."""
        dead: set[Process] = set()
        for process in processes:
            self.thaw(process)
            process.is_alive = False
            dead.add(process)
            # Its tasks see the cancellation (their doors are dead by then), so that no coroutine stays suspended.
            for task in list(process.tasks):
                task.cancel()
        # All timers are looked through once, however many die: nothing has run meanwhile.
        for handle in itertools.chain(self._ready, (handle for _, _, handle in self._timers)):
            if handle.is_timer and handle.process in dead:
                handle.cancel()

    # Errors

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """An error that nobody caught ends the simulation: a real program would go on, a test must not."""
        if self._failure is None:
            self._failure = context.get("exception") or SimulationError(context["message"])
        self.stop()

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)

    def take_failure(self) -> BaseException | None:
        """The first error that nobody caught, once."""
        failure, self._failure = self._failure, None
        return failure

    def get_debug(self) -> bool:
        return False

    def set_debug(self, enabled: bool) -> None:
        """Nothing to switch."""

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Asked of every loop by asyncio.TimerHandle; cancelled timers are skipped when they come due."""

    async def shutdown_asyncgens(self) -> None:
        """Nothing to shut down: generators are closed when they are dropped."""


class Outside:
    """The loop as the network and the faults use it: their callbacks belong to no process, whoever caused them."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._context = contextvars.Context()

    def time(self) -> float:
        return self._loop.time()

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        self._loop.call_soon(callback, *args, context=self._context)

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        return self._loop.call_later(delay, callback, *args, context=self._context)

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        return self._loop.call_at(when, callback, *args, context=self._context)

    def call_in(self, process: Process, callback: Callable[..., object], *args: Any) -> None:
        """Soon, as part of `process`: later if it is frozen."""
        self._loop.call_soon(callback, *args, context=process.context)


def _refuse(name: str) -> Callable[..., NoReturn]:
    def refused(self: VirtualLoop, *arguments: object, **options: object) -> NoReturn:
        raise NotSimulated(f"loop.{name} reaches outside the simulation: use the doors of the node's World instead")

    return refused


_REFUSED = """
    call_soon_threadsafe run_in_executor set_default_executor shutdown_default_executor getaddrinfo
    getnameinfo  create_connection create_server create_unix_connection create_unix_server
    create_datagram_endpoint  connect_accepted_socket connect_read_pipe connect_write_pipe start_tls
    sendfile subprocess_exec subprocess_shell  add_reader remove_reader add_writer remove_writer
    sock_recv sock_recv_into sock_recvfrom sock_recvfrom_into  sock_sendall sock_sendto sock_connect
    sock_accept sock_sendfile add_signal_handler remove_signal_handler
"""
for _name in _REFUSED.split():
    setattr(VirtualLoop, _name, _refuse(_name))
