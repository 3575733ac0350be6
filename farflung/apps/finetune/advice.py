"""When one byte per measurement pays, and when not: computed for a model and its links, and said plainly (pure).

Zeroth order needs 10 to 100 times more forward passes than back-propagation needs steps (MeZO, section 2 and its
appendix on cost). Per step of back-propagation, on n machines that share a batch of T tokens, for P parameters:

    back-propagation   6 P T / (n speed)   computing   +   2 (n - 1) / n * bytes of a gradient / bandwidth   (a ring)
    one byte           k 2 P T / (n speed) computing   +   k / 2 entries * 1.1 bytes / bandwidth + its rounds' latency

with k forward passes, 10 to 100. Where both take as long is the crossover bandwidth: below it one byte is faster.
"""

from dataclasses import dataclass

FORWARD_PASSES = (10, 100)
"""k: forward passes that zeroth order needs for each step of back-propagation, at best and at worst."""
BYTES_PER_ENTRY = 1.1
"""On the wire, with headers and signatures."""
FLOPS_PER_SECOND = 5e10
"""What one core of a processor computes in float32, where nobody has measured."""
MEMORY_OF_BACK_PROPAGATION = 4
"""Weights, gradients and two moments of Adam, in copies of the weights; activations come on top."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A model, its work and its links."""

    num_parameters: int
    bytes_per_parameter: float
    """Of a gradient as others would send it: 4 for float32, 2 for bfloat16."""
    tokens_per_entry: int
    """Tokens of the batch that one entry is measured on."""
    entries_per_round: int
    num_machines: int
    bytes_per_second: float
    """Of the slowest machine's link."""
    latency_seconds: float
    """One way."""
    flops_per_second: float | None = None
    """Of one machine; None where nobody has measured: a processor's core is assumed."""

    def __post_init__(self) -> None:
        if min(self.num_parameters, self.tokens_per_entry, self.entries_per_round, self.num_machines) < 1:
            raise ValueError("advice needs at least one parameter, token, entry and machine")
        if not (self.bytes_per_second > 0 and self.latency_seconds >= 0 and self.bytes_per_parameter > 0):
            raise ValueError("a link needs a bandwidth above 0 and a latency of at least 0")


@dataclass(frozen=True, slots=True)
class Advice:
    """What to say before a run."""

    crossover_bits_per_second: tuple[float, float]
    """Where zeroth order takes as long as back-propagation, with 100 and with 10 forward passes for each step: slower
    than the first it is faster for sure, faster than the second it is slower for sure."""
    sentences: tuple[str, ...]


def advise(setting: Setting) -> Advice:
    """When to tune by single bytes here, and when not."""
    at_best, at_worst = (_crossover_bytes_per_second(setting, count) * 8 for count in FORWARD_PASSES)
    return Advice((at_worst, at_best), (*_cost(setting), _verdict(setting, at_worst, at_best), _otherwise(setting)))


def _cost(setting: Setting) -> tuple[str, str]:
    gradient = setting.num_parameters * setting.bytes_per_parameter
    per_round = setting.entries_per_round * BYTES_PER_ENTRY
    return (
        f"Zeroth order needs {FORWARD_PASSES[0]} to {FORWARD_PASSES[1]} times more forward passes than "
        f"back-propagation needs steps: you pay with computing for what you save in bytes and memory.",
        f"A round of {setting.entries_per_round} entries is {_bytes(per_round)}; a gradient of these "
        f"{_count(setting.num_parameters)} parameters "
        f"is {_bytes(gradient)}, {_count(gradient / per_round)} times as much.",
    )


def _verdict(setting: Setting, at_worst: float, at_best: float) -> str:
    if setting.num_machines == 1:
        return "With one machine there is nothing to send: back-propagation is faster wherever it fits into memory."
    link = setting.bytes_per_second * 8
    if link < at_worst:
        judgement = "one byte is the faster way even at its worst"
    elif link > at_best:
        judgement = "back-propagation with whole gradients is faster, where it fits into memory"
    else:
        judgement = "either may be faster, which the task decides"
    assumed = "" if setting.flops_per_second else f", if a machine computes {FLOPS_PER_SECOND / 1e9:.0f} GFLOP/s"
    return (
        f"Crossover: {_bits(at_worst)} to {_bits(at_best)} per machine{assumed}; your slowest link has {_bits(link)}, "
        f"so {judgement}."
    )


def _otherwise(setting: Setting) -> str:
    memory = setting.num_parameters * setting.bytes_per_parameter * MEMORY_OF_BACK_PROPAGATION
    return (
        f"Where machines can back-propagate ({_bytes(memory)} and activations), low-rank adapters (--method "
        f"fedavg-lora) reach more in less time for some hundred times the bytes, and exact projections make this run "
        f"faster; where they cannot, or the objective has no gradient, one byte is the way."
    )


def _crossover_bytes_per_second(setting: Setting, num_forwards: int) -> float:
    """Bandwidth at which a step of back-propagation and `num_forwards` forward passes take as long; infinite if
    back-propagation is slower at any, and 0 with one machine."""
    if setting.num_machines == 1:
        return 0.0
    speed = setting.flops_per_second or FLOPS_PER_SECOND
    forward_seconds = 2 * setting.num_parameters * setting.tokens_per_entry / speed / setting.num_machines
    num_entries = num_forwards / 2
    others = setting.num_machines - 1
    ring_bytes = 2 * others / setting.num_machines * setting.num_parameters * setting.bytes_per_parameter
    more_bytes = ring_bytes - num_entries * BYTES_PER_ENTRY
    rounds = num_entries / setting.entries_per_round
    more_seconds = (num_forwards - 3) * forward_seconds + 2 * setting.latency_seconds * (rounds - others)
    if more_seconds <= 0:
        return float("inf")
    return max(more_bytes, 0.0) / more_seconds


def _bits(bits_per_second: float) -> str:
    return "any bandwidth" if bits_per_second == float("inf") else _scaled(bits_per_second, "bit/s")


def _bytes(num_bytes: float) -> str:
    return _scaled(num_bytes, "B")


def _count(number: float) -> str:
    return _scaled(number, "").strip()


def _scaled(number: float, unit: str) -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}"
