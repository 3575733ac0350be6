"""A version of the weights as chunks named by their content: whole (an anchor), or what changed (a delta).

    tensors by name    │ a ─────────────── │ b ── │ c ── │ d ─────────
    pieces             │ 0        │ 1      │ 2    │ 3    │ 4    │ 5        each in the codec that is smallest for it
    chunks             │ 0                 │ 1                  │ 2        SHA-256 of each in the manifest

A piece that did not change is nowhere. The manifest names the hash of the whole as well: what was put together is
compared with it before anything is installed.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import msgspec
import torch

from farflung.learn.parameters import Tensors, copies, fingerprint
from farflung.systems.alignment.codecs import Encoded, decode_words, encode_words, words_of
from farflung.systems.alignment.config import WeightsConfig
from farflung.systems.alignment.messages import Canary, ChunkRef, Manifest
from farflung.wire.parts import plan_parts
from farflung.wire.tensor import DTYPES, MalformedTensor

LAYOUT_VALUES_MAX = 1 << 40
"""Values of a model that anybody could hold."""


class TensorForm(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A tensor without its values."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class _Piece(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    name: str
    offset: int
    length: int
    """In values."""
    encoded: Encoded


@dataclass(frozen=True, slots=True)
class Version:
    """Weights that are held whole."""

    number: int
    weights_hash: bytes
    tensors: Tensors
    """On the processor, contiguous; never changed once they are here."""


NOTHING = Version(-1, b"", {})
"""What a node holds that has not got any weights yet."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A manifest with its chunks by digest."""

    manifest: Manifest
    chunks: dict[bytes, bytes]
    codecs: dict[str, int]
    """Bytes by codec, which says what was found smallest."""


def version_of(number: int, tensors: Mapping[str, torch.Tensor]) -> Version:
    """These values in memory of their own, with their hash."""
    held = {name: tensor.cpu().contiguous() for name, tensor in copies(tensors).items()}
    return Version(number, fingerprint(held), dict(sorted(held.items())))


def pack_version(
    new: Version, base: Version, config: WeightsConfig, canary: Canary | None, *, is_small: bool = True
) -> Packed:
    """What makes `new` out of `base`, of the same names and shapes; out of `NOTHING` it is an anchor.

    Without `is_small` values travel as they are, which takes no time.
    """
    chunks: dict[bytes, bytes] = {}
    references: list[ChunkRef] = []
    codecs: dict[str, int] = {}
    for pieces in _gathered(_pieces(new, base, config, is_small), config.chunk_bytes):
        data = msgspec.msgpack.encode(pieces)
        digest = hashlib.sha256(data).digest()
        chunks[digest] = data
        references.append(ChunkRef(digest, len(data)))
        for piece in pieces:
            codecs[piece.encoded.codec] = codecs.get(piece.encoded.codec, 0) + len(piece.encoded.data)
    manifest = Manifest(
        version=new.number,
        weights_hash=new.weights_hash,
        base_version=base.number,
        base_hash=base.weights_hash,
        layout=msgspec.msgpack.encode(_layout(new.tensors)),
        chunks=tuple(references),
        canary=canary,
    )
    return Packed(manifest, chunks, codecs)


def unpack_version(manifest: Manifest, base: Version, chunk: Callable[[bytes], bytes]) -> Version:
    """The weights that a manifest stands for, whole and verified; `base` stays as it is.

    Raises:
        MalformedTensor: chunks or manifest are damaged, or do not lead from `base` to what the manifest promises.
    """
    if not manifest.is_anchor and (manifest.base_version, manifest.base_hash) != (base.number, base.weights_hash):
        raise MalformedTensor(f"version {manifest.version} needs version {manifest.base_version}, not {base.number}")
    tensors = _empty(manifest) if manifest.is_anchor else copies(base.tensors)
    words = {name: words_of(tensor) for name, tensor in tensors.items()}
    for reference in manifest.chunks:
        data = chunk(reference.digest)
        if hashlib.sha256(data).digest() != reference.digest:
            raise MalformedTensor(f"a chunk of version {manifest.version} is damaged")
        for piece in _read(data):
            if piece.name not in words or not 0 <= piece.offset <= piece.offset + piece.length <= len(
                words[piece.name]
            ):
                raise MalformedTensor(f"{piece.name[:80]!r} has no {piece.length} values from {piece.offset} on")
            decode_words(piece.encoded, words[piece.name][piece.offset : piece.offset + piece.length])
    found = fingerprint(tensors)
    if found != manifest.weights_hash:
        raise MalformedTensor(f"version {manifest.version} came out with another hash than it was published with")
    return Version(manifest.version, found, tensors)


def _pieces(new: Version, base: Version, config: WeightsConfig, is_small: bool) -> Iterator[_Piece]:
    lengths = {name: tensor.numel() for name, tensor in new.tensors.items()}
    for name, offset, length in (plan for part in plan_parts(lengths, config.values_per_piece) for plan in part):
        values = words_of(new.tensors[name])[offset : offset + length]
        old = words_of(base.tensors[name])[offset : offset + length] if base.tensors else None
        encoded = encode_words(values, old) if is_small else Encoded("raw", values.tobytes())
        if encoded is not None:
            yield _Piece(name, offset, length, encoded)


def _gathered(pieces: Iterator[_Piece], chunk_bytes: int) -> Iterator[list[_Piece]]:
    """Pieces in chunks of at least `chunk_bytes`, but the last."""
    gathered: list[_Piece] = []
    num_bytes = 0
    for piece in pieces:
        gathered.append(piece)
        num_bytes += len(piece.encoded.data)
        if num_bytes >= chunk_bytes:
            yield gathered
            gathered, num_bytes = [], 0
    if gathered:
        yield gathered


def _read(data: bytes) -> list[_Piece]:
    try:
        return msgspec.msgpack.decode(data, type=list[_Piece])
    except msgspec.MsgspecError as error:
        raise MalformedTensor(f"a chunk of weights cannot be read: {error}") from None


def _layout(tensors: Tensors) -> list[TensorForm]:
    return [
        TensorForm(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in tensors.items()
    ]


def _empty(manifest: Manifest) -> Tensors:
    try:
        forms = msgspec.msgpack.decode(manifest.layout, type=list[TensorForm])
    except msgspec.MsgspecError as error:
        raise MalformedTensor(f"the layout of version {manifest.version} cannot be read: {error}") from None
    num_values = 0
    for form in forms:
        num_values += torch.Size(form.shape).numel()
        if form.dtype not in DTYPES or min(form.shape, default=0) < 0 or num_values > LAYOUT_VALUES_MAX:
            raise MalformedTensor(f"{form.name[:80]!r} is {form.dtype[:20]!r} {form.shape[:8]}, which nobody can hold")
    return {form.name: torch.empty(form.shape, dtype=DTYPES[form.dtype]) for form in forms}
