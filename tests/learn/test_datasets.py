"""Data sets of the `datasets` library as sources of text, read from this disk."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from farflung.learn.documents import Source
from farflung.learn.sources import SourceConfig, kind_of, open_source
from farflung.learn.tokenized import load_tokens
from farflung.learn.tokenizer import byte_tokenizer

ROWS = {"text": ["one", "", "two"], "body": ["1", "2", "3"], "id": [1, 2, 3]}


@pytest.mark.parametrize("source", ["owner/name", "name"])
def test_without_the_library_the_way_out_is_named(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # what an import of a missing module does
    with pytest.raises(ValueError, match=rf"there is no file or folder {source}.* pip install 'farflung\[data\]'"):
        open_source(SourceConfig(source=source))


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    library = pytest.importorskip("datasets", reason="the extra `data` is not installed")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "library")
    return library


def texts(source: Source) -> list[str]:
    return [piece.text for piece in source.pieces() if piece.ends_document]


@pytest.fixture(params=["saved", "saved splits", "parquet", "folder of parquet"])
def saved(request: pytest.FixtureRequest, datasets: Any, tmp_path: Path) -> Callable[..., SourceConfig]:
    """Where the rows lie, in each of the forms."""
    rows, path = datasets.Dataset.from_dict(ROWS), tmp_path / "data"
    if request.param == "saved":
        rows.save_to_disk(path)
    elif request.param == "saved splits":
        datasets.DatasetDict(train=rows, test=rows.select([2])).save_to_disk(path)
    else:
        path.mkdir()
        rows.to_parquet(path / "train-0.parquet")
    source = str(path / "*.parquet") if request.param == "parquet" else str(path)
    kind = "dataset" if request.param == "folder of parquet" else "auto"
    return lambda **settings: SourceConfig(source=source, kind=kind, **settings)


def test_rows_are_documents(saved: Callable[..., SourceConfig], tmp_path: Path) -> None:
    assert kind_of(saved()) == "dataset"
    first = open_source(saved())
    assert texts(first) == ["one", "two"] == texts(first)
    other = open_source(saved(text_field="body"))
    assert texts(other) == ["1", "2", "3"]
    assert first.fingerprint() == open_source(saved()).fingerprint() != other.fingerprint()
    tokens = load_tokens(saved(), byte_tokenizer(), tmp_path / "cache")
    assert tokens.tolist() == [*b"one", 256, *b"two", 256]


def test_wrong_fields_are_named(saved: Callable[..., SourceConfig]) -> None:
    with pytest.raises(ValueError, match=r"has no field 'content' \(there are: text, body, id\)"):
        open_source(saved(text_field="content"))
    with pytest.raises(ValueError, match=r"row 0 of the data set .* has no text but a value of type int"):
        texts(open_source(saved(text_field="id")))


def test_splits_are_chosen_and_missing_ones_named(datasets: Any, tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict(ROWS)
    datasets.DatasetDict(train=rows, test=rows.select([2])).save_to_disk(tmp_path / "data")
    assert texts(open_source(SourceConfig(source=str(tmp_path / "data"), split="test"))) == ["two"]
    with pytest.raises(ValueError, match=r"splits train, test.*check its id, subset and split 'dev'"):
        open_source(SourceConfig(source=str(tmp_path / "data"), split="dev"))


def test_a_data_set_that_cannot_be_had_is_named(datasets: Any) -> None:
    with pytest.raises(ValueError, match="the data set no-such-owner/no-such-name cannot be had"):
        open_source(SourceConfig(source="no-such-owner/no-such-name"))
