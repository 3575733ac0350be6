"""The records of a run on one machine's disk: a list that grows, with the chain's hash after each.

A candidate that was cut off may hold records that never counted; it cuts them off before it follows again. The journal
door only appends, so a cut is an entry of its own: reading it back plays both.
"""

from collections.abc import Iterable, Sequence

import msgspec

from farflung.systems.onebyte.header import Header
from farflung.systems.onebyte.journal import CHECK_BYTES, Chain
from farflung.world.effects import Append


class Held(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """More records."""

    contents: tuple[bytes, ...]


class Cut(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2):
    """Only the first `num_records` are left."""

    num_records: int


_decoder: msgspec.msgpack.Decoder[Held | Cut] = msgspec.msgpack.Decoder(Held | Cut)


def journal_name(header: Header) -> str:
    """Of the door's journal for this run."""
    return f"onebyte-{header.run_name}"


class Log:
    """Records in order; what it is told it keeps, and gives the effects that make that durable."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self.contents: list[bytes] = []
        self._chain = Chain(header)
        self._hashes = [self._chain.hash]

    @classmethod
    def open(cls, header: Header, entries: Iterable[bytes]) -> "Log":
        """As the journal has it."""
        log = cls(header)
        for entry in entries:
            match _decoder.decode(entry):
                case Held(contents):
                    for content in contents:
                        log._hold(content)
                case Cut(num_records):
                    log._cut(num_records)
        return log

    def __len__(self) -> int:
        return len(self.contents)

    @property
    def hash(self) -> bytes:
        """Of the chain after all records."""
        return self._chain.hash

    def hash_after(self, num_records: int) -> bytes:
        """Of the chain after the first so many."""
        return self._hashes[num_records]

    def check_after(self, num_records: int) -> bytes:
        """The first bytes of that."""
        return self._hashes[num_records][:CHECK_BYTES]

    def append(self, contents: Sequence[bytes]) -> list[Append]:
        """More records, all of them on the disk or none."""
        for content in contents:
            self._hold(content)
        return [self._kept(Held(tuple(contents)))] if contents else []

    def cut(self, num_records: int) -> list[Append]:
        """Forget what comes after the first so many."""
        if num_records == len(self):
            return []
        self._cut(num_records)
        return [self._kept(Cut(num_records))]

    def marks(self) -> tuple[tuple[int, bytes], ...]:
        """Numbers of records, falling ever faster, with the hashes after them: where another's journal may agree."""
        count, step, found = len(self), 1, list[tuple[int, bytes]]()
        while count > 0:
            found.append((count, self._hashes[count]))
            count, step = count - step, 2 * step
        return (*found, (0, self._hashes[0]))

    def agreement(self, marks: Sequence[tuple[int, bytes]]) -> int | None:
        """The first of `marks` that this journal agrees with; None: it is of another run."""
        agreed = (count for count, digest in marks if count <= len(self) and self._hashes[count] == digest)
        return next(agreed, None)

    def piece(self, first: int, end: int, num_bytes_max: int) -> tuple[bytes, ...]:
        """Records from `first` to before `end`: as many as fit into so many bytes, but at least one if there is one."""
        found: list[bytes] = []
        num_bytes = 0
        for content in self.contents[first:end]:
            if found and num_bytes + len(content) > num_bytes_max:
                break
            found.append(content)
            num_bytes += len(content)
        return tuple(found)

    def _hold(self, content: bytes) -> None:
        self.contents.append(content)
        self._chain.extend(content)
        self._hashes.append(self._chain.hash)

    def _cut(self, num_records: int) -> None:
        del self.contents[num_records:], self._hashes[num_records + 1 :]
        self._chain.hash = self._hashes[-1]

    def _kept(self, entry: Held | Cut) -> Append:
        return Append(journal_name(self.header), msgspec.msgpack.encode(entry))
