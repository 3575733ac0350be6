"""Where training text comes from: the embedded corpus, files, data sets of the Hub, or tokens made before."""

import glob
import hashlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from farflung.learn.corpus import StandardLibrary
from farflung.learn.documents import Piece, Source
from farflung.learn.text_files import TextFiles, find_files, is_json_lines, text_of

EMBEDDED = "python"
TOKENS_SUFFIX = ".npy"
PARQUET_SUFFIX = ".parquet"
TEXT_SUFFIXES = (".txt", ".text", ".md", ".gz", ".csv", ".py")
"""Endings that say that a name which is nowhere was meant as a file's."""
SAVED_DATASET_FILES = ("dataset_info.json", "dataset_dict.json")
"""What `save_to_disk` of datasets leaves in a folder."""

Kind = Literal["auto", "corpus", "files", "dataset", "tokens"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceConfig:
    """One source of training text."""

    source: str = EMBEDDED
    """`python` (the embedded corpus), a file, folder or pattern of texts (.txt ...) or JSON Lines (.jsonl), a data set
    (its id on the Hub, .parquet files, or a folder that `datasets` saved), or a file of tokens (.npy)."""
    kind: Kind = "auto"
    """What `source` is; auto: as its spelling and what is there tell."""
    text_field: str = "text"
    """Which field of a JSON object or column of a data set has the text."""
    subset: str | None = None
    """Of a data set: its configuration's name, where it has several."""
    split: str = "train"
    """Of a data set."""

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError("the source of the data has no name: give a file, a data set, or 'python' for the corpus")
        if not self.text_field:
            raise ValueError("text_field is empty: name the field that has the text")


def kind_of(config: SourceConfig) -> Kind:
    """What a configuration means; never `auto`."""
    if config.kind != "auto":
        return config.kind
    path = Path(config.source).expanduser()
    if config.source == EMBEDDED:
        return "corpus"
    if config.source.endswith(TOKENS_SUFFIX):
        return "tokens"
    if config.source.endswith(PARQUET_SUFFIX) or _is_saved_dataset(path):
        return "dataset"
    return "files" if path.exists() or _looks_like_path(config.source) else "dataset"


def open_source(config: SourceConfig) -> Source:
    """The documents of a source that has text.

    Raises:
        ValueError: it is missing, is no text, or cannot be reached.
    """
    kind = kind_of(config)
    if kind == "corpus":
        return StandardLibrary()
    if kind == "dataset":
        return HubDataset(config)
    if kind == "tokens":
        raise ValueError(
            f"{config.source} holds tokens, not text: to learn or change a tokenizer, give the text itself"
        )
    return TextFiles(config.source, find_files(config.source), config.text_field)


class HubDataset:
    """A data set of the `datasets` library as a source, one document for each row."""

    def __init__(self, config: SourceConfig) -> None:
        self.name = config.source
        self._config = config
        self._rows = _open_dataset(config)
        columns: list[str] = self._rows.column_names
        # An empty record stands for all: what it lacks, each of them lacks.
        text_of(dict.fromkeys(columns, ""), config.text_field, f"the data set {config.source}")

    def fingerprint(self) -> str:
        """A hash of the files that the library keeps, and of which rows and field of them are read."""
        chosen = (self._config.subset, self._config.split, self._config.text_field, len(self._rows))
        digest = hashlib.sha256(repr(chosen).encode())
        for entry in self._rows.cache_files:
            with open(entry["filename"], "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def pieces(self) -> Iterator[Piece]:
        """All rows with a text in them."""
        for number, row in enumerate(self._rows.select_columns([self._config.text_field])):
            if text := text_of(row, self._config.text_field, f"row {number} of the data set {self.name}"):
                yield Piece(text, ends_document=True)


def _open_dataset(config: SourceConfig) -> Any:
    path = Path(config.source).expanduser()
    try:
        library: Any = importlib.import_module("datasets")
    except ImportError:
        is_missing = "" if path.exists() else f"there is no file or folder {config.source}, and "
        raise ValueError(
            f"{is_missing}data sets are read by a library that is not installed: correct the path, or pip install "
            f"'farflung[data]'"
        ) from None
    try:
        if config.source.endswith(PARQUET_SUFFIX):
            return library.load_dataset("parquet", data_files=str(path), split=config.split)
        if _is_saved_dataset(path):
            return _of_split(library.load_from_disk(str(path)), config)
        return library.load_dataset(str(path) if path.exists() else config.source, config.subset, split=config.split)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"the data set {config.source} cannot be had ({reason}): check its id, subset and split {config.split!r}"
        ) from error


def _is_saved_dataset(path: Path) -> bool:
    return any((path / file).is_file() for file in SAVED_DATASET_FILES)


def _of_split(loaded: Any, config: SourceConfig) -> Any:
    if not hasattr(loaded, "keys"):
        return loaded
    if config.split not in loaded:
        raise ValueError(f"it has the splits {', '.join(loaded)}")
    return loaded[config.split]


def _looks_like_path(source: str) -> bool:
    is_file_name = source.lower().endswith(TEXT_SUFFIXES) or is_json_lines(Path(source))
    return is_file_name or glob.has_magic(source) or source.startswith((".", "/", "~", "\\")) or source.count("/") > 1
