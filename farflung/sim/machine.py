"""A simulated machine over its lives: its disk and its speed stay, each life has doors of its own."""

from collections.abc import Callable
from random import Random

from farflung.sim.compute import Speed, VirtualDevice
from farflung.sim.fabric import Fabric
from farflung.sim.loop import VirtualLoop
from farflung.sim.network import SimulatedNetwork
from farflung.sim.process import Process
from farflung.sim.station import Station
from farflung.sim.store import Disk, DiskJournal, DiskStore
from farflung.world.doors import Journal, World

EPOCH_SECONDS = 1_700_000_000.0
"""Wall-clock time at which every simulation begins."""

Boot = Callable[[World], object]


class VirtualClock:
    """Virtual seconds; all machines share the wall clock."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def now(self) -> float:
        return self._loop.time()

    def wall_seconds(self) -> float:
        return EPOCH_SECONDS + self._loop.time()


class Machine:
    """One station with what it keeps over its lives."""

    def __init__(
        self, seed: int, loop: VirtualLoop, fabric: Fabric, station: Station, boot: Boot, speed: Speed
    ) -> None:
        self._seed = seed
        self._loop = loop
        self._fabric = fabric
        self.station = station
        self.boot = boot
        self.speed = speed
        self.disk = Disk()
        self.num_lives = 0
        self.world: World | None = None

    def begin_life(self) -> World:
        """A new process with fresh doors; nothing of the life before but the disk and the counters."""
        self.num_lives += 1
        process = Process(self.station.name)
        network = SimulatedNetwork(self._fabric, self.station, process)
        self.station.process, self.station.network = process, network
        self.world = World(
            clock=VirtualClock(self._loop),
            network=network,
            compute=VirtualDevice(self._loop, process, self.speed),
            store=DiskStore(self.disk, process),
            journal=self._journals(process),
            random=self._streams(self.num_lives),
            note=self._notes(process),
            traffic=self.station.traffic,
        )
        return self.world

    def _journals(self, process: Process) -> Callable[[str], Journal]:
        opened: dict[str, Journal] = {}
        return lambda name: opened.setdefault(name, DiskJournal(self.disk, process, name))

    def _streams(self, life: int) -> Callable[[str], Random]:
        # A restarted process draws other numbers than the one before it, as on real machines.
        return lambda purpose: Random(f"{self._seed}:{self.station.name}:{life}:{purpose}")

    def _notes(self, process: Process) -> Callable[[str, str], None]:
        def note(actor: str, sentence: str) -> None:
            if process.is_alive:
                self._fabric.trace.add(self._loop.time(), "note", self.station.name, f"{actor}: {sentence}")

        return note
