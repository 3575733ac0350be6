"""Seats as actors of Ray, which starts an actor again when its process dies; it goes on from what its home keeps.

Without RAY_ADDRESS a Ray of this machine is started for the run and stopped with it. It listens on the loopback alone
and calls nobody: no usage statistics, no dashboard, no questions to clouds.

    lead ── start(arguments) ──> actor: `farflung ARGUMENTS` in its process   (killed: again, by Ray)
"""

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ADDRESS_VARIABLE = "RAY_ADDRESS"
RESTARTS_MAX = 100
"""Of one actor, by Ray; then its end is told to whoever has started it."""
OBJECT_BYTES = 80 << 20
"""Memory for Ray's objects, of which there are none: little more than the least that it takes."""
FAILED = 1
LOCAL_VARIABLES = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""No statistics; and no cluster, so that Ray is on 127.0.0.1 only, as it is by itself on those two systems."""
CLUSTER_FILE = "ray_bootstrap_config.yaml"
"""Where this is missing in the home, Ray asks the metadata services of three clouds where it is."""


class SeatActor:
    """One command in a process of Ray's."""

    def __init__(self, log: str, variables: dict[str, str]) -> None:
        """`log`: where it writes, in this life and in those before."""
        os.environ.update(variables)  # before anything is imported that reads them
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.close(output)

    def run(self, arguments: list[str]) -> int:
        """Run a command; its exit status."""
        from farflung.apps.cli import main

        try:
            main(arguments)
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else FAILED
        return 0


class ActorCommand:
    """Implements `launchers.Started`."""

    def __init__(self, actor: Any, reference: Any, log: Path) -> None:
        self.actor = actor
        self._reference = reference
        self._log = log
        self._status: int | None = None

    @property
    def is_running(self) -> bool:
        """Whether it has not ended; while Ray starts it again it has not."""
        return self.status is None

    @property
    def status(self) -> int | None:
        """Its exit status."""
        import ray
        from ray.exceptions import RayError

        if self._status is None and ray.wait([self._reference], timeout=0)[0]:
            try:
                self._status = ray.get(self._reference)
            except RayError as error:  # an error that the command did not expect, or too many deaths
                self._status = FAILED
                with self._log.open("a", encoding="utf-8") as log:
                    log.write(f"{error}\n")
        return self._status

    def lines(self) -> list[str]:
        """What it has written, in all its lives."""
        return self._log.read_text(encoding="utf-8", errors="replace").splitlines() if self._log.exists() else []


class RayActors:
    """Implements `launchers.Launcher`."""

    def __init__(self, folder: Path, num_ranks: int) -> None:
        """`folder` gets a log per actor; `num_ranks` share the accelerators of the cluster."""
        self._folder = folder.absolute()
        self._num_ranks = num_ranks
        self._commands: list[ActorCommand] = []
        self._variables: dict[str, str] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "RayActors":
        address = os.environ.get(ADDRESS_VARIABLE)
        if address is None:
            os.environ.update(LOCAL_VARIABLES)
        import ray

        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if address is not None:
            ray.init(address=address, **options)
        else:
            self._variables["HOME"] = str(Path.home())
            with self._home_of_ray():
                ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_BYTES, **options)
        self._stack.callback(ray.shutdown)
        return self

    def __exit__(self, *exception: object) -> None:
        import ray

        for command in reversed(self._commands):
            if command.is_running:
                ray.kill(command.actor)
        self._stack.close()

    def start(
        self, name: str, arguments: Sequence[str], variables: Mapping[str, str], *, num_ranks: int = 0
    ) -> ActorCommand:
        """As `Launcher.start`."""
        import ray

        log = self._folder / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        num_gpus = gpus_each(ray.cluster_resources().get("GPU", 0.0), self._num_ranks, num_ranks)
        # Seats wait for each other most of the time: they are spread over the machines, whatever the number of cores.
        actor_class: Any = ray.remote(SeatActor)
        actors = actor_class.options(
            num_cpus=0,
            num_gpus=num_gpus,
            scheduling_strategy="SPREAD",
            max_restarts=RESTARTS_MAX,
            max_task_retries=-1,
        )
        actor = actors.remote(str(log), {**self._variables, **variables})
        command = ActorCommand(actor, actor.run.remote(list(arguments)), log)
        self._commands.append(command)
        return command

    @contextlib.contextmanager
    def _home_of_ray(self) -> Iterator[None]:
        """Ray's own processes get a home in which they find that they are in no cloud."""
        home = self._stack.enter_context(TemporaryDirectory(prefix="farflung-ray-"))
        (Path(home) / CLUSTER_FILE).write_text("{}\n", encoding="utf-8")
        before = os.environ.get("HOME")
        os.environ["HOME"] = home
        try:
            yield
        finally:
            if before is None:
                del os.environ["HOME"]
            else:
                os.environ["HOME"] = before


def gpus_each(num_gpus: float, num_ranks_of_all: int, num_ranks: int) -> float:
    """What an actor of `num_ranks` asks for: one for each if they suffice, else a fair share of one, or whole ones."""
    if not num_ranks or not num_gpus:
        return 0.0
    share = num_ranks / math.ceil(num_ranks_of_all / num_gpus)  # so many fill an accelerator
    return share if share < 1 else float(int(share))
