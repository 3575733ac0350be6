"""The machines of a plan one by one, with what each does per second: measured, or by its device's data sheet."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from farflung.apps.capacity import USABLE_SHARE
from farflung.apps.plan.devices import FLOPS_SHARE, MEMORY_SHARE, device_named
from farflung.apps.plan.plan_file import MachineSettings, PlanFile
from farflung.apps.plan.units import bytes_of

PEER_LENGTH = 52
"""Of a peer's id."""
PACKED_BYTES_PER_SECOND, INSTALLED_BYTES_PER_SECOND = 30e6, 200e6
"""Of weights, by one core of a processor (bench/weight_sync)."""
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine of the plan."""

    name: str
    site: str
    device: str
    dtype: str
    flops: float
    """That it reaches, per second."""
    memory_bytes: float
    memory_bytes_per_second: float
    price_per_hour: float
    watts: float | None
    measured: MachineSettings

    @property
    def value_bytes(self) -> int:
        """Of one weight that it serves."""
        return BYTES[self.dtype]

    def blocks_per_second(self, block_parameters: int) -> float:
        """That one token passes: the weights are read once, or the arithmetic is what takes longer."""
        if self.measured.blocks_per_second is not None:
            return self.measured.blocks_per_second
        reading = self.value_bytes * block_parameters / self.memory_bytes_per_second
        return 1 / max(reading, 2 * block_parameters / self.flops)

    def forward_tokens_per_second(self, block_parameters: int) -> float:
        """Through one block, many at once."""
        return self.measured.forward_tokens_per_second or self.flops / (2 * block_parameters)

    def model_tokens_per_second(self, parameters: int, num_blocks: int) -> float:
        """Forward through a whole model, many at once: two operations per parameter and token."""
        return self.forward_tokens_per_second(parameters // num_blocks) / num_blocks

    def train_tokens_per_second(self, parameters: int) -> float:
        """Forward, backward and step: six operations per parameter and token."""
        return self.measured.train_tokens_per_second or self.flops / (6 * parameters)

    def pack_seconds(self, num_bytes: float) -> float:
        """Of weights of so many bytes, of which a new version is made."""
        return num_bytes / (self.measured.packed_bytes_per_second or PACKED_BYTES_PER_SECOND)

    def install_seconds(self, num_bytes: float) -> float:
        """The same where it arrives."""
        return num_bytes / (self.measured.installed_bytes_per_second or INSTALLED_BYTES_PER_SECOND)

    def is_measured_for(self, kind: str) -> bool:
        """Whether the speeds that count for a goal were measured."""
        measured = self.measured
        found = {
            "serve": (measured.blocks_per_second,),
            "pretrain": (measured.train_tokens_per_second,),
            "finetune": (measured.forward_tokens_per_second,),
            "align": (measured.blocks_per_second, measured.train_tokens_per_second),
        }
        return None not in found[kind]


def peer_of(name: str) -> str:
    """The id of a simulated node, as long as real ones are: messages carry ids."""
    return f"{name:-<{PEER_LENGTH}}"


def machines_of(plan: PlanFile) -> list[Machine]:
    """In the order of the file, named by their sites."""
    numbers = Counter[str]()
    machines: list[Machine] = []
    for settings in plan.machines:
        for _ in range(settings.count):
            numbers[settings.site] += 1
            machines.append(_machine(settings, f"{settings.site}-{numbers[settings.site]}"))
    return machines


def machines_with_memory(
    machines: Sequence[Machine], needed_bytes: Callable[[Machine], float], what: str, way_out: str = ""
) -> list[Machine]:
    """Those that have room for it; `what` needs it, in words, and what to do if there is none.

    Raises:
        ValueError: there is none, and how much the one that comes nearest lacks.
    """
    fitting = [one for one in machines if one.memory_bytes * USABLE_SHARE >= needed_bytes(one)]
    if fitting:
        return fitting
    nearest = min(machines, key=lambda one: needed_bytes(one) - one.memory_bytes * USABLE_SHARE)
    needed, usable = needed_bytes(nearest), nearest.memory_bytes * USABLE_SHARE
    raise ValueError(
        f"{what} need {bytes_of(needed)}, the largest machine has {bytes_of(usable)} ({USABLE_SHARE:.0%} of "
        f"{bytes_of(nearest.memory_bytes)}): {bytes_of(needed - usable)} short{way_out and f'; {way_out}'}"
    )


def _machine(settings: MachineSettings, name: str) -> Machine:
    device = device_named(settings.device)
    sheet_flops = device.flops * FLOPS_SHARE if device is not None else 0.0
    flops = settings.flops or sheet_flops
    memory_gb = settings.memory_gb or (device.memory_gb if device is not None else 0.0)
    # Where no data sheet says it, reading weights is not taken to be what decoding waits for.
    reading = device.memory_gb_per_second * 1e9 * MEMORY_SHARE if device is not None else flops
    return Machine(
        name=name,
        site=settings.site,
        device=settings.device,
        dtype=settings.dtype or (device.dtype if device is not None else "float32"),
        flops=flops,
        memory_bytes=memory_gb * 1e9,
        memory_bytes_per_second=reading,
        price_per_hour=settings.price_per_hour,
        watts=settings.watts,
        measured=settings,
    )
