"""Tokens in files: written as they come, kept by the hash of what they were made from, and mapped instead of read.

A file is one row of uint16 or uint32 in numpy's own format; beside it `FILE.json` says how many there are, the largest,
and which tokenizer made them. Both are replaced as wholes.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from farflung.learn.documents import Piece, Source
from farflung.learn.sources import SourceConfig, kind_of, open_source
from farflung.learn.stream import Tokens
from farflung.learn.tokenizer import end_token, fingerprint

FORMAT = 1
"""Changes when the same text would become other tokens, so that older caches are not taken."""
BATCH_CHARACTERS = 1 << 20
"""Texts that the tokenizer gets together: enough for all its threads, little in memory."""
SCAN_TOKENS = 1 << 24

Report = Callable[[int], object]
"""Told the number of tokens so far, for a progress bar."""


def load_tokens(
    config: SourceConfig, tokenizer: PreTrainedTokenizerBase, cache_folder: Path, report: Report = lambda _: None
) -> Tokens:
    """The tokens of a source, mapped from a file: its own, or the cache's, which is made the first time.

    Raises:
        ValueError: the source is missing or empty, or its tokens are of another tokenizer.
    """
    if kind_of(config) == "tokens":
        return open_tokens(Path(config.source).expanduser(), tokenizer)
    return open_tokens(tokenize(open_source(config), tokenizer, cache_folder, report), tokenizer)


def tokenize(
    source: Source, tokenizer: PreTrainedTokenizerBase, cache_folder: Path, report: Report = lambda _: None
) -> Path:
    """The file of the source's tokens, an end mark after each document; written unless the cache has it.

    Raises:
        ValueError: the source has no text, or is not what the user said it is.
    """
    content = json.dumps([FORMAT, source.fingerprint(), fingerprint(tokenizer)])
    path = cache_folder / f"tokens-{hashlib.sha256(content.encode()).hexdigest()[:24]}.npy"
    if not path.is_file():
        write_tokens(path, _reported(encode(source.pieces(), tokenizer), report), tokenizer, what=source.name)
    return path


def encode(pieces: Iterable[Piece], tokenizer: PreTrainedTokenizerBase) -> Iterator[Tokens]:
    """Rows of tokens, int64, an end mark after each document, in bounded memory."""
    end = end_token(tokenizer)
    for batch in _batches(pieces):
        rows = _encode_batch([piece.text for piece in batch], tokenizer)
        for piece, row in zip(batch, rows, strict=True):
            yield np.asarray([*row, end] if piece.ends_document else row, dtype=np.int64)


def write_tokens(
    path: Path, rows: Iterable[Sequence[int] | Tokens], tokenizer: PreTrainedTokenizerBase, *, what: str = "the data"
) -> int:
    """Write rows of tokens one after the other as they come; how many tokens there are now in the file.

    Raises:
        ValueError: there are none, one that the tokenizer does not have, or the disk does not take them.
    """
    dtype = np.dtype("<u2") if len(tokenizer) <= 1 << 16 else np.dtype("<u4")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            num_tokens, largest = _write_rows(file, rows, dtype, len(tokenizer), what)
        description = {"num_tokens": num_tokens, "largest": largest, "tokenizer": fingerprint(tokenizer)}
        # The description of another content must never stand beside this one: it goes first and comes last.
        _description_path(path).unlink(missing_ok=True)
        unfinished.replace(path)
        with unfinished.open("wb") as file:
            file.write(json.dumps(description).encode())
            _sync(file)
        unfinished.replace(_description_path(path))
    except OSError as error:
        raise ValueError(
            f"the tokens of {what} cannot be written to {path} ({error.strerror}): make room there"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return num_tokens


def open_tokens(path: Path, tokenizer: PreTrainedTokenizerBase) -> Tokens:
    """Map a file of tokens that this tokenizer made, or that at least fits its vocabulary where nothing says who did.

    Raises:
        ValueError: there is no such file, it is not one row of tokens, or the tokenizer is another.
    """
    tokens = _mapped(path)
    described = _described(path)
    if described.get("num_tokens") != len(tokens):
        largest = max(int(tokens[start : start + SCAN_TOKENS].max()) for start in range(0, len(tokens), SCAN_TOKENS))
    elif described["tokenizer"] != fingerprint(tokenizer):
        raise ValueError(
            f"{path} was made by another tokenizer than this run's: name that one, or make the tokens again"
        )
    else:
        largest = described["largest"]
    if largest >= len(tokenizer):
        raise ValueError(
            f"{path} has the token {largest}, and the tokenizer ends at {len(tokenizer) - 1}: name the tokenizer that "
            f"made them"
        )
    return tokens


def _encode_batch(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    encoded: Any
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return encoded["input_ids"]
    # Twice as fast as the call above, because it does not say where in the text each token is from.
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return [encoded.ids for encoded in backend.encode_batch_fast(texts, add_special_tokens=False)]


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    num_characters = 0
    for piece in pieces:
        batch.append(piece)
        num_characters += len(piece.text)
        if num_characters >= BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


def _reported(rows: Iterable[Tokens], report: Report) -> Iterator[Tokens]:
    num_tokens = 0
    for row in rows:
        num_tokens += len(row)
        report(num_tokens)
        yield row


def _write_rows(
    file: IO[bytes], rows: Iterable[Sequence[int] | Tokens], dtype: np.dtype[Any], vocabulary_size: int, what: str
) -> tuple[int, int]:
    """Number of tokens and the largest; the header is written again when the number is known."""
    num_tokens, largest = 0, -1
    _write_header(file, dtype, 0)
    begins_at = file.tell()
    for row in rows:
        values = np.asarray(row, dtype=np.int64)
        if values.size == 0:
            continue
        if values.min() < 0 or values.max() >= vocabulary_size:
            raise ValueError(f"{what} has tokens beyond the tokenizer's {vocabulary_size}: name the one that made them")
        file.write(values.astype(dtype).tobytes())
        num_tokens, largest = num_tokens + values.size, max(largest, int(values.max()))
    if num_tokens == 0:
        raise ValueError(f"{what} is empty: there is no text to train on")
    file.seek(0)
    _write_header(file, dtype, num_tokens)
    assert file.tell() == begins_at, "numpy leaves room for the number to grow"
    _sync(file)
    return num_tokens, largest


def _sync(file: IO[bytes]) -> None:
    """So that a crash after the rename that follows leaves no empty file under the new name."""
    file.flush()
    os.fsync(file.fileno())


def _write_header(file: IO[bytes], dtype: np.dtype[Any], num_tokens: int) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (num_tokens,)}
    np.lib.format.write_array_header_1_0(file, header)


def _description_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _described(path: Path) -> dict[str, Any]:
    """What was written beside a file of ours; nothing where there is no such thing."""
    try:
        return json.loads(_description_path(path).read_text(encoding="ascii"))
    except FileNotFoundError:
        return {}


def _mapped(path: Path) -> Tokens:
    try:
        tokens: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}: give one of tokens (.npy), or the text itself") from None
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is no file of tokens ({error}): write it with write_tokens") from error
    if not _is_row(tokens):
        raise ValueError(f"{path} is not one row of whole numbers from 0: write it with write_tokens")
    return tokens


def _is_row(tokens: Any) -> bool:
    if not isinstance(tokens, np.ndarray):  # an archive of several arrays
        return False
    row = cast(Tokens, tokens)
    return row.ndim == 1 and len(row) > 0 and (row.dtype.kind == "u" or (row.dtype.kind == "i" and row.min() >= 0))
