"""What devices can do by their makers' data sheets, for machines that a plan names without having measured them."""

import difflib
from dataclasses import dataclass

FLOPS_SHARE = 0.4
"""Of a data sheet's rate that large matrix products of a language model reach."""
MEMORY_SHARE = 0.6
"""Of a data sheet's memory bandwidth that decoding reaches."""


@dataclass(frozen=True, slots=True)
class Device:
    """One kind of accelerator, or a processor."""

    flops: float
    """Dense 16-bit operations per second by the data sheet (32-bit ones of a processor)."""
    memory_gb: float
    memory_gb_per_second: float
    dtype: str = "bfloat16"
    """What its weights are in."""


DEVICES = {
    "H200": Device(989e12, 141, 4800),
    "H100": Device(989e12, 80, 3350),
    "A100": Device(312e12, 80, 2039),
    "A100-40": Device(312e12, 40, 1555),
    "L40S": Device(362e12, 48, 864),
    "L4": Device(121e12, 24, 300),
    "T4": Device(65e12, 16, 320, "float16"),
    "V100": Device(125e12, 32, 900, "float16"),
    "RTX 4090": Device(165e12, 24, 1008),
    "RTX 3090": Device(71e12, 24, 936),
    "cpu": Device(0.5e12, 32, 40, "float32"),
}
"""`cpu`: a desktop of eight cores; a server of its own is better measured."""


def device_named(name: str) -> Device | None:
    """The device of that name, in any case; None: it is not known."""
    return next((device for known, device in DEVICES.items() if known.lower() == name.lower()), None)


def nearest_device(name: str) -> str:
    """The known name that is spelled most alike, or all of them."""
    spelled = {known.lower(): known for known in DEVICES}
    near = difflib.get_close_matches(name.lower(), list(spelled), n=1, cutoff=0.5)
    return f"did you mean {spelled[near[0]]!r}?" if near else f"known are {', '.join(DEVICES)}"
