"""Entries on the wire: seven bits each, which hold all of a byte that can matter in its round.

    7 bits     bit 6: sign; bits 0-5: level l, code = reference - 47 + l, and level 0 is nothing at all
    padding    level 0 with the sign: it fills the last byte

Against the reference of its round an entry is worth at most 127 and at least 1, if it is worth anything, so that only
63 codes can be told apart by what they do: from 46 below the reference to 16 above it. Entries are brought into that
range by the measurer, before they are sent, and the journal has them so. Before there is a reference bytes travel as
they are.
"""

import msgspec
import numpy as np

from farflung.systems.onebyte.code import CODE_MAX, SIGN_BIT
from farflung.systems.onebyte.ledger import Ledger
from farflung.systems.onebyte.records import Part, Round, decode_record, encode_record

LEVEL_BITS = 6
LEVEL_MAX = (1 << LEVEL_BITS) - 1
STEPS_ABOVE = 16
"""Two octaves: an entry that large is worth 127."""
STEPS_BELOW = LEVEL_MAX - 1 - STEPS_ABOVE
ENTRY_BITS = LEVEL_BITS + 1
PADDING = 1 << LEVEL_BITS


def bounded(codes: bytes, reference: int) -> bytes:
    """The same entries within the range that can be packed; a reference of 0 bounds nothing.

    What is too small stays the smallest there is: if all entries of a round were, their median must say so.
    """
    if not reference:
        return codes
    values = np.frombuffer(codes, dtype=np.uint8)
    sizes = values & CODE_MAX
    low, high = max(1, reference - STEPS_BELOW), min(CODE_MAX, reference + STEPS_ABOVE)
    return np.where(sizes == 0, 0, np.clip(sizes, low, high) | (values & SIGN_BIT)).astype(np.uint8).tobytes()


def pack(codes: bytes, reference: int) -> bytes:
    """Bounded entries as bits; as they are if there is no reference."""
    if not reference:
        return codes
    values = np.frombuffer(codes, dtype=np.uint8).astype(np.int16)
    sizes = values & CODE_MAX
    levels = np.where(sizes == 0, 0, sizes - (reference - STEPS_BELOW - 1))
    assert levels.min(initial=0) >= 0 and levels.max(initial=0) <= LEVEL_MAX, "entries are bounded before"
    entries = levels | np.where((values & SIGN_BIT > 0) & (sizes > 0), PADDING, 0)
    num_padding = (8 - ENTRY_BITS * len(codes) % 8) % 8 // ENTRY_BITS
    entries = np.concatenate([entries, np.full(num_padding, PADDING)]).astype(np.uint8)
    bits = np.unpackbits(entries[:, None], axis=1, bitorder="little", count=ENTRY_BITS)
    return np.packbits(bits.reshape(-1), bitorder="little").tobytes()


def unpack(data: bytes, reference: int) -> bytes:
    """The entries that `pack` was given. Any bytes are some entries."""
    if not reference:
        return data
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), bitorder="little")
    count = len(bits) // ENTRY_BITS
    entries = np.packbits(bits[: count * ENTRY_BITS].reshape(count, ENTRY_BITS), axis=1, bitorder="little")[:, 0]
    if count and entries[-1] == PADDING:
        entries = entries[:-1]
    levels = (entries & LEVEL_MAX).astype(np.int16)
    sizes = np.where(levels == 0, 0, np.clip(levels + (reference - STEPS_BELOW - 1), 1, CODE_MAX))
    return np.where((entries & PADDING > 0) & (sizes > 0), sizes | SIGN_BIT, sizes).astype(np.uint8).tobytes()


PACKED_MARK = b"\xc1"
"""Begins a packed record; nothing in msgpack does."""


class PackedRound(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A round on its way to who knows the references of its parts' rounds."""

    number: int
    reference: int
    parts: tuple[tuple[int, int, int, bytes], ...]
    """Participant, rounds late, first slot, entries."""


def packed_record(content: bytes, ledger: Ledger) -> bytes:
    """A record as it travels: rounds packed where they can be, others as they are. `ledger` knows the round."""
    record = decode_record(content)
    if not isinstance(record, Round):
        return content
    references = [ledger.reference_of(part.base_round) for part in record.parts]
    parts: list[tuple[int, int, int, bytes]] = []
    for part, reference in zip(record.parts, references, strict=True):
        if not reference:
            return content
        packed = pack(part.codes, reference)
        parts.append((part.participant, record.number - part.base_round, part.first_slot, packed))
    return PACKED_MARK + msgspec.msgpack.encode(PackedRound(record.number, record.reference, tuple(parts)))


def unpacked_record(content: bytes, ledger: Ledger) -> bytes:
    """The record as it stands in the journal; `ledger` holds those before it.

    Raises:
        ValueError: it is none.
    """
    if not content.startswith(PACKED_MARK):
        return content
    try:
        packed = msgspec.msgpack.decode(content[len(PACKED_MARK) :], type=PackedRound)
    except msgspec.MsgspecError as error:
        raise ValueError(f"it is no record ({error})") from None
    parts: list[Part] = []
    for participant, num_late, first_slot, data in packed.parts:
        reference = ledger.reference_of(packed.number - num_late)
        if not reference:
            raise ValueError(f"round {packed.number} is packed for a reference that is not known here")
        parts.append(Part(participant, packed.number - num_late, first_slot, unpack(data, reference)))
    return encode_record(Round(packed.number, packed.reference, tuple(parts)))
