"""Sources of text: what is named is found and read, and what is wrong is said with its place."""

import gzip
import json
from pathlib import Path

import pytest

from farflung.learn import text_files
from farflung.learn.corpus import StandardLibrary, standard_library
from farflung.learn.documents import Source
from farflung.learn.sources import SourceConfig, kind_of, open_source


def documents(source: Source) -> list[str]:
    """Whole documents again."""
    found = [""]
    for piece in source.pieces():
        assert piece.text
        found[-1] += piece.text
        if piece.ends_document:
            found.append("")
    assert found[-1] == "", "the last piece ends a document"
    return found[:-1]


def read(source: Path | str, **settings: str) -> list[str]:
    return documents(open_source(SourceConfig(source=str(source), **settings)))  # pyright: ignore[reportArgumentType]


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_the_embedded_corpus_is_python_and_always_the_same() -> None:
    some = standard_library(500_000)
    assert 300_000 < sum(map(len, some)) < 900_000
    assert sum("def " in text for text in some) > len(some) / 2
    assert some == standard_library(500_000)
    whole = read("python")
    assert sum(map(len, whole)) > 3_000_000 and {*some} <= {*whole}
    assert StandardLibrary().fingerprint() == StandardLibrary().fingerprint()


def test_files_folders_and_patterns_in_order_of_their_names(tmp_path: Path) -> None:
    write(tmp_path, {"b.txt": "two", "a.txt": "one", "c/d.md": "three", ".hidden": "no", "empty.txt": "", "e.csv": "4"})
    assert read(tmp_path) == ["one", "two", "three", "4"]
    assert read(tmp_path / "b.txt") == ["two"]
    assert read(tmp_path / "*.txt") == ["one", "two"]
    assert read(tmp_path / "**/*.md") == ["three"]


def test_json_lines_give_the_named_field(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"t{number}", "body": f"b{number}\né"}) for number in range(3)]
    content = "\n".join([lines[0], "", lines[1], '{"text": "", "body": ""}', lines[2]])
    for name in ("a.jsonl", "b.ndjson", "c.JSON"):
        write(tmp_path, {name: content})
        assert read(tmp_path / name) == ["t0", "t1", "t2"]
        assert read(tmp_path / name, text_field="body") == ["b0\né", "b1\né", "b2\né"]


def test_packed_files_and_byte_order_marks_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "packed"}\n'))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"packed too"))
    (tmp_path / "c.txt").write_text("marked", encoding="utf-8-sig")
    assert read(tmp_path) == ["packed", "packed too", "marked"]
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"packed too")[:-9])
    with pytest.raises(ValueError, match=r"b\.txt\.gz cannot be unpacked"):
        read(tmp_path)


def test_a_long_text_comes_in_pieces_that_end_with_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "PIECE_CHARACTERS", 10)
    texts = {"a.txt": "a line of words\n" * 5 + "end", "b.txt": "x" * 35, "c.txt": "0123456789"}
    source = open_source(SourceConfig(source=str(write(tmp_path, texts))))
    pieces = [piece.text for piece in source.pieces()]
    assert documents(source) == list(texts.values())
    assert max(map(len, pieces)) <= 20 and len(pieces) == 6 + 2 + 1


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", '{"text": "x"}\n{"body": 1, "id": 2}', r"a\.jsonl:2 has no field 'text' \(there are: body, id\)"),
        (
            "a.jsonl",
            '{"text": "x"}\n\n{"text": 5}',
            r"a\.jsonl:3 has no text but a value of type int in its field 'text'",
        ),
        ("a.jsonl", '{"text": null}', r"a\.jsonl:1 has nothing in its field 'text'"),
        ("a.jsonl", '{"text": "x"}\n{"text"', r"a\.jsonl:2 is no JSON"),
        ("a.json", '["x"]', r"a\.json:1 is not an object with a field 'text'"),
        ("a.json", '[\n{"text": "x"}\n]', r"a\.json:1 is no JSON .*one JSON object a line"),
    ],
)
def test_a_wrong_line_is_named_with_the_fields_there(tmp_path: Path, name: str, content: str, sentence: str) -> None:
    write(tmp_path, {name: content})
    with pytest.raises(ValueError, match=sentence):
        read(tmp_path / name)


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good\n" * 10_000 + b"\xff\xfe")
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8 text"):
        read(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("nowhere.txt", "no file is called nowhere.txt"),
        ("./nowhere", "no file is called"),
        ("texts/*.txt", "no file matches the pattern"),
        ("a/b/c", "no file is called"),
    ],
)
def test_missing_files_are_named(source: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        read(source)


def test_an_empty_folder_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no files"):
        read(tmp_path)


def test_kinds_follow_from_the_spelling_or_are_given(tmp_path: Path) -> None:
    spelled = {"python": "corpus", "t.npy": "tokens", "a.jsonl": "files", "owner/name": "dataset", "~/a": "files"}
    assert {source: kind_of(SourceConfig(source=source)) for source in spelled} == spelled
    assert kind_of(SourceConfig(source=str(tmp_path))) == "files"
    assert kind_of(SourceConfig(source="python", kind="files")) == "files"
    with pytest.raises(ValueError, match="holds tokens, not text"):
        open_source(SourceConfig(source="t.npy"))
    with pytest.raises(ValueError, match="has no name"):
        SourceConfig(source="")
    with pytest.raises(ValueError, match="text_field is empty"):
        SourceConfig(text_field="")


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    def fingerprint(files: dict[str, str], field: str = "text") -> str:
        folder = write(tmp_path / f"folder-{len(list(tmp_path.iterdir()))}", files)
        return open_source(SourceConfig(source=str(folder), text_field=field)).fingerprint()

    first = fingerprint({"a.txt": "x", "b.txt": "y"})
    assert fingerprint({"c.txt": "x", "d.txt": "y"}) == first
    others = [{"a.txt": "y", "b.txt": "x"}, {"a.txt": "xy", "b.txt": ""}, {"a.jsonl": "x", "b.txt": "y"}]
    assert len({first, *map(fingerprint, others), fingerprint({"a.txt": "x", "b.txt": "y"}, "body")}) == 5
