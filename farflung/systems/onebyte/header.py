"""What a run is: everything that turns its bytes back into weights, fixed before the first measurement."""

import hashlib
import re
from typing import Literal

import msgspec

from farflung.systems.onebyte.code import COEFFICIENT_MAX, COEFFICIENT_UNIT
from farflung.systems.onebyte.sharing import SharedSlots

FORMAT = 1
RUN_ID_BYTES = 16
HASH_BYTES = 32
RATE_MAX = (1 << 16) - 1
"""An entry's coefficient times this fits into the 24 bits that float32 products are exact in."""
EXPONENT_MAX = 40
GAUSSIAN_FRACTION_BITS = 8
"""An element z of a Gaussian direction stands for z / 256."""
NAME_LENGTH_MAX = 500
ELEMENTS_MAX = 1 << 33
DTYPES = ("float32", "bfloat16", "float16", "float64")


class TensorShape(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A tensor that is tuned."""

    name: str
    """As the model's `named_parameters` gives it."""
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        product = 1
        for length in self.shape:
            product *= length
        return product

    @property
    def rows(self) -> int:
        """Rows of the tensor as a matrix: all axes but the last, folded."""
        return self.num_elements // self.shape[-1]


class Schedule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The learning rate of each round, as an integer multiple of 2^-K per unit of a coefficient."""

    kind: Literal["constant", "linear"] = "constant"
    rate: int
    """Of the first round."""
    num_rounds: int = 0
    """Linear: the round at which the rate would be 0."""

    def __post_init__(self) -> None:
        if not 1 <= self.rate <= RATE_MAX:
            raise ValueError(f"a rate of {self.rate} is outside 1 to {RATE_MAX}: choose another exponent for it")
        if self.kind == "linear" and self.num_rounds < 1:
            raise ValueError("a linear schedule needs the number of rounds after which the rate is 0")

    def rate_of(self, round_number: int) -> int:
        """The integer rate of a round, rounded down."""
        if self.kind == "constant":
            return self.rate
        return self.rate * max(self.num_rounds - round_number, 0) // self.num_rounds


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first record of a journal."""

    format: int = FORMAT
    run: bytes
    """16 random bytes: the same settings in another run measure other directions."""
    base: bytes
    """SHA-256 of the base model's parameters, all of them, in `dtype` (`learn.parameters.fingerprint`)."""
    base_name: str
    """For people; `base` decides."""
    dtype: str
    """Of the weights: base and tuned ones."""
    tensors: tuple[TensorShape, ...]
    direction: Literal["rank1", "rademacher", "gaussian"] = "rank1"
    generator: Literal["philox4x64", "philox4x32"] = "philox4x64"
    epsilon: float
    """How far each measurement goes along its direction to either side."""
    exponent: int
    """K: weights move in steps of 2^-K (Gaussian directions: 2^-(K + 8))."""
    schedule: Schedule
    num_slots: int
    """Directions of a round."""
    code_exponent_min: int = -12
    """Entries tell magnitudes from 2^this to 2^(this + 16) apart."""
    coefficient_max: int = COEFFICIENT_MAX
    """Where an entry is clipped; the reference is worth 32."""
    staleness_rounds_max: int = 8
    """How many rounds late an entry may still be committed."""
    sequencer: bytes
    """Public key of who orders the journal and closes it."""
    shared: SharedSlots | msgspec.UnsetType = msgspec.UNSET
    """Private data: everybody measures all slots. Unset (then not in the bytes): anybody measures any slot, once."""

    quantisation: Literal["int8", "nf4"] | msgspec.UnsetType = msgspec.UNSET
    """The base weights are those that codes of this form stand for, and `base` is their hash (`quantised.py`)."""

    def __post_init__(self) -> None:
        for what, is_right in self._checks().items():
            if not is_right:
                raise ValueError(f"this is no journal's header ({what}): take the file from its author again")

    def _checks(self) -> dict[str, bool]:
        names = [tensor.name for tensor in self.tensors]
        lengths = [length for tensor in self.tensors for length in (*tensor.shape, len(tensor.name))]
        return {
            f"format {self.format} is not {FORMAT}": self.format == FORMAT,
            "its ids and hashes have other lengths": len(self.run) == RUN_ID_BYTES
            and len(self.base) == len(self.sequencer) == HASH_BYTES,
            "it names no tensors, or some twice": bool(names) and len({*names}) == len(names),
            "a tensor has no shape": all(tensor.shape for tensor in self.tensors) and all(n > 0 for n in lengths),
            "a tensor is too large": all(tensor.num_elements <= ELEMENTS_MAX for tensor in self.tensors),
            "a name cannot be shown": all(name.isprintable() for name in (*names, self.base_name)),
            "a name is too long": max(map(len, (*names, self.base_name)), default=0) <= NAME_LENGTH_MAX,
            "unknown type of numbers": self.dtype in DTYPES,
            "epsilon is not positive": 0.0 < self.epsilon < 1e6,
            "its exponent is out of range": 0 <= self.exponent <= EXPONENT_MAX,
            "its number of slots is out of range": 1 <= self.num_slots <= 1 << 20,
            "its lowest magnitude is out of range": -64 <= self.code_exponent_min <= 48,
            "its clipping is out of range": 1 <= self.coefficient_max <= COEFFICIENT_MAX,
            "its staleness is out of range": 0 <= self.staleness_rounds_max <= 1 << 16,
        }

    @property
    def quantised_as(self) -> str:
        """The form of the base weights' codes; empty for plain weights."""
        return "" if self.quantisation is msgspec.UNSET else self.quantisation

    @property
    def shared_slots(self) -> SharedSlots | None:
        """How private data is dealt with, or None."""
        return None if self.shared is msgspec.UNSET else self.shared

    @property
    def is_masked(self) -> bool:
        """Only sums over cohorts stand in the journal."""
        return self.shared_slots is not None and self.shared_slots.is_masked

    @property
    def update_exponent(self) -> int:
        """An accumulator counts in units of 2^-this."""
        return self.exponent + (GAUSSIAN_FRACTION_BITS if self.direction == "gaussian" else 0)

    @property
    def run_name(self) -> str:
        """The run's id for people."""
        return self.run.hex()


def encode_header(header: Header) -> bytes:
    """The header's canonical bytes."""
    return msgspec.msgpack.encode(header)


def decode_header(content: bytes) -> Header:
    """Read what `encode_header` wrote.

    Raises:
        ValueError: anything else.
    """
    try:
        return msgspec.msgpack.decode(content, type=Header)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        reason = re.sub(r"\s+", " ", str(error))
        raise ValueError(f"this is no journal's header ({reason}): take the file from its author again") from None


def header_hash(header: Header) -> bytes:
    """32 bytes that stand for the run; what is signed, is signed for it."""
    return hashlib.blake2b(encode_header(header), digest_size=HASH_BYTES, person=b"farflung header").digest()


def schedule_of(
    rate: float,
    *,
    num_slots: int,
    exponent: int,
    kind: Literal["constant", "linear"] = "constant",
    num_rounds: int = 0,
) -> Schedule:
    """The schedule whose first rounds move weights by `rate` times the mean of (projection / reference) * direction.

    Raises:
        ValueError: the exponent gives no integer for this rate; says which exponents do.
    """
    if not rate > 0:
        raise ValueError("the learning rate must be positive")
    units = rate / (COEFFICIENT_UNIT * num_slots)
    integer = round(units * 2.0**exponent)
    if not 8 <= integer <= RATE_MAX:
        fitting = [k for k in range(EXPONENT_MAX + 1) if 16 <= round(units * 2.0**k) <= RATE_MAX]
        way_out = f"choose {fitting[0]} to {fitting[-1]}" if fitting else "choose another rate"
        raise ValueError(f"a learning rate of {rate:g} cannot be told in steps of 2^-{exponent}: {way_out}")
    return Schedule(kind=kind, rate=integer, num_rounds=num_rounds)
