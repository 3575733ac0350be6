"""Tokens: every text comes back from them, files are written in bounded memory, mapped, and never mistaken."""

import json
import resource
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from farflung.learn import tokenizer
from farflung.learn.corpus import standard_library
from farflung.learn.documents import Piece
from farflung.learn.sources import SourceConfig, open_source
from farflung.learn.stream import Shard, TokenStream
from farflung.learn.tokenized import encode, load_tokens, open_tokens, tokenize, write_tokens
from farflung.learn.tokenizer import (
    END,
    byte_tokenizer,
    fingerprint,
    learn_tokenizer,
    learnt_tokenizer,
    open_tokenizer,
)

BYTES = byte_tokenizer()
LEARNT = learn_tokenizer(standard_library(100_000), 300)
END_BYTE = 256


@given(st.text(max_size=50))
def test_any_text_has_tokens_that_spell_it(text: str) -> None:
    assert LEARNT.decode(LEARNT.encode(text)) == text
    assert BYTES.decode(BYTES.encode(text)) == text
    if END not in text:
        assert BYTES.encode(text) == list(text.encode())


def test_an_end_mark_within_a_text_ends_it() -> None:
    """As with other tokenizers, so that texts may hold documents or turns that are joined already."""
    assert BYTES.encode(f"a{END}b") == [*b"a", END_BYTE, *b"b"]


def test_byte_tokens_are_saved_beside_a_model_and_opened_as_any_other(tmp_path: Path) -> None:
    BYTES.save_pretrained(tmp_path)
    GPT2LMHeadModel(GPT2Config(vocab_size=len(BYTES), n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path)
    for opened in (AutoTokenizer.from_pretrained(tmp_path), open_tokenizer(str(tmp_path))):
        assert isinstance(opened, PreTrainedTokenizerFast) and len(opened) == 257
        assert opened.encode("é\n") == [0xC3, 0xA9, 10] and opened.decode([0xC3, 0xA9, 10]) == "é\n"
        assert opened.eos_token == END and opened.eos_token_id == END_BYTE
        assert opened.decode([97, END_BYTE], skip_special_tokens=True) == "a"
        assert fingerprint(opened) == fingerprint(BYTES)
        chat = [{"role": "user", "content": "hello"}]
        assert opened.apply_chat_template(chat, tokenize=False) == "hello\n"


def test_a_fingerprint_tells_tokenizers_apart_and_not_their_uses() -> None:
    assert len({fingerprint(BYTES), fingerprint(LEARNT), fingerprint(learn_tokenizer(["other"] * 3, 300))}) == 3
    before = fingerprint(LEARNT)
    LEARNT(["a", "bb"], padding=False, truncation=True, max_length=1)
    assert LEARNT.backend_tokenizer.truncation is not None, "the call has left its mark"
    assert fingerprint(LEARNT) == before


def test_a_learnt_tokenizer_is_kept_by_what_it_was_learnt_from(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("alpha alpha alpha " * 50)
    (tmp_path / "b.txt").write_text("omega omega omega " * 50)
    sources = [open_source(SourceConfig(source=str(tmp_path / name))) for name in ("a.txt", "b.txt")]
    cache = tmp_path / "cache"
    first = learnt_tokenizer(sources, 300, cache)
    assert len(first.encode(" alpha omega")) <= 4, "words of both sources are learnt"
    (kept,) = cache.iterdir()
    written_at = (kept / "tokenizer.json").stat().st_mtime_ns
    assert fingerprint(learnt_tokenizer(sources, 300, cache)) == fingerprint(first)
    assert (kept / "tokenizer.json").stat().st_mtime_ns == written_at
    learnt_tokenizer(sources[:1], 300, cache)
    assert len(list(cache.iterdir())) == 2
    with pytest.raises(ValueError, match="ask for 300 or more"):
        learnt_tokenizer(sources, 100, cache)


def test_all_sources_have_a_say_in_a_learnt_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "LEARNT_CHARACTERS_MAX", 2_000)
    for name, word in (("a.jsonl", "alpha"), ("b.jsonl", "omega")):
        (tmp_path / name).write_text(f'{{"text": "{(word + " ") * 20}"}}\n' * 100)
    sources = [open_source(SourceConfig(source=str(tmp_path / name))) for name in ("a.jsonl", "b.jsonl")]
    learnt = learnt_tokenizer(sources, 300, tmp_path / "cache")
    assert len(learnt.encode(" alpha")) == len(learnt.encode(" omega")) == 1


def test_wrong_tokenizers_are_refused(tmp_path: Path) -> None:
    for name, sentence in (("./nowhere", "no tokenizer folder"), (str(tmp_path), "no tokenizer can be read from")):
        with pytest.raises(ValueError, match=sentence):
            open_tokenizer(name)
    endless = learn_tokenizer(["x"] * 3, 300)
    endless.eos_token = None
    endless.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no token that ends a text"):
        open_tokenizer(str(tmp_path))


def test_documents_are_joined_with_the_end_mark(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    tokens = load_tokens(SourceConfig(source=str(tmp_path / "a.jsonl")), BYTES, tmp_path / "cache")
    assert tokens.tolist() == [*b"one", END_BYTE, *b"two", END_BYTE]
    pieces = [Piece("a b", ends_document=False), Piece(" c", ends_document=True)]
    assert [row.tolist() for row in encode(pieces, BYTES)] == [[*b"a b"], [*b" c", END_BYTE]]


def test_tokens_are_those_of_a_plain_call_whatever_was_asked_before() -> None:
    texts = ["def main():\n    return 1\n" * 9, "é", "a longer text than the limit"]
    LEARNT(texts, truncation=True, max_length=4)
    rows = [row.tolist()[:-1] for row in encode([Piece(text, ends_document=True) for text in texts], LEARNT)]
    assert rows == [LEARNT.encode(text) for text in texts]


def test_tokens_are_made_once_and_mapped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text\n" * 100)
    config, cache = SourceConfig(source=str(tmp_path / "a.txt")), tmp_path / "cache"
    seen: list[int] = []
    tokens = load_tokens(config, BYTES, cache, seen.append)
    assert isinstance(tokens, np.memmap) and tokens.dtype == np.uint16 and not tokens.flags.writeable
    assert seen == [1001] and len(tokens) == 1001
    assert load_tokens(config, BYTES, cache, seen.append).tolist() == tokens.tolist() and len(seen) == 1
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".npy"]
    load_tokens(config, LEARNT, cache)
    (tmp_path / "a.txt").write_text("other text")
    assert bytes(load_tokens(config, BYTES, cache)[:-1].astype(np.uint8)) == b"other text"
    assert len(list(cache.iterdir())) == 6


def test_a_large_vocabulary_takes_four_bytes(tmp_path: Path) -> None:
    large = learn_tokenizer(["x"] * 3, 300)
    large.add_tokens([f"<{number}>" for number in range(1 << 16)])
    assert write_tokens(tmp_path / "t.npy", [[1, 65_700], [], [2]], large) == 3
    tokens = open_tokens(tmp_path / "t.npy", large)
    assert tokens.dtype == np.uint32 and tokens.tolist() == [1, 65_700, 2]


def test_the_file_is_numpys_own_and_streams(tmp_path: Path) -> None:
    path = tmp_path / "t.npy"
    write_tokens(path, (range(start, start + 10) for start in range(0, 100, 10)), BYTES)
    assert np.load(path).tolist() == list(range(100))
    tokens = load_tokens(SourceConfig(source=str(path)), BYTES, tmp_path / "unused")
    batch = TokenStream(tokens, 9, 11, Shard(0, 1), "seed").next_batch()
    assert sorted(batch[:, 0].tolist()) == list(range(0, 99, 9)) and not (tmp_path / "unused").exists()


def test_a_corpus_larger_than_memory_is_written_in_bounded_memory(tmp_path: Path) -> None:
    row = np.arange(1 << 16) % 257
    tracemalloc.start()
    num_tokens = write_tokens(tmp_path / "t.npy", (row for _ in range(300)), BYTES)
    tokens = open_tokens(tmp_path / "t.npy", BYTES)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_tokens == len(tokens) == 300 << 16 and tokens[-1] == row[-1]
    assert peak < tokens.nbytes / 15


def test_texts_are_tokenized_in_bounded_memory(tmp_path: Path) -> None:
    """Four times the text takes no more memory: measured in a process of its own."""
    (tmp_path / "small.txt").write_text("A line of some words.\n" * 50_000)
    (tmp_path / "large.txt").write_text("A line of some words.\n" * 200_000)
    script = """
import resource, sys
from pathlib import Path
from farflung.learn.sources import SourceConfig
from farflung.learn.tokenized import load_tokens
from farflung.learn.tokenizer import byte_tokenizer
for name in ("small.txt", "large.txt"):
    load_tokens(SourceConfig(source=sys.argv[1] + "/" + name), byte_tokenizer(), Path(sys.argv[1]))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    small, large = map(int, done.stdout.split())
    assert large - small < 50_000, "KiB"


def test_files_of_other_tokenizers_or_no_tokens_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.npy"
    write_tokens(path, [[1, 2, 299]], LEARNT)
    with pytest.raises(ValueError, match="made by another tokenizer"):
        open_tokens(path, BYTES)
    (tmp_path / "t.npy.json").unlink()
    assert open_tokens(path, LEARNT).tolist() == [1, 2, 299]
    with pytest.raises(ValueError, match="has the token 299, and the tokenizer ends at 256"):
        open_tokens(path, BYTES)
    with pytest.raises(ValueError, match="there is no file"):
        open_tokens(tmp_path / "nowhere.npy", BYTES)
    for array in (np.zeros((2, 2), np.uint16), np.zeros(3), np.array([1, -1]), np.zeros(0, np.uint16)):
        np.save(path, array)
        with pytest.raises(ValueError, match="not one row of whole numbers"):
            open_tokens(path, BYTES)
    np.savez(tmp_path / "z.npz", a=np.zeros(3, np.uint16))
    (tmp_path / "z.npz").rename(path)
    with pytest.raises(ValueError, match="not one row"):
        open_tokens(path, BYTES)
    path.write_bytes(b"no array")
    with pytest.raises(ValueError, match="is no file of tokens"):
        open_tokens(path, BYTES)


def test_a_file_written_again_is_never_described_by_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "t.npy"
    write_tokens(path, [[1, 2, 3]], LEARNT)
    np.save(path, np.array([5, 6], np.uint16))  # by other means: another length than described
    assert open_tokens(path, BYTES).tolist() == [5, 6]
    write_tokens(path, [[7, 8, 9]], BYTES)
    assert json.loads((tmp_path / "t.npy.json").read_text())["largest"] == 9
    assert open_tokens(path, BYTES).tolist() == [7, 8, 9]


def test_nothing_empty_or_beyond_the_vocabulary_is_written(tmp_path: Path) -> None:
    for rows, sentence in (([], "is empty"), ([[]], "is empty"), ([[1, 257]], "beyond"), ([[-1]], "beyond")):
        with pytest.raises(ValueError, match=sentence):
            write_tokens(tmp_path / "t.npy", rows, BYTES)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match=r"empty\.txt is empty: there is no text to train on"):
        tokenize(open_source(SourceConfig(source=str(tmp_path / "empty.txt"))), BYTES, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == [] and not (tmp_path / "t.npy").exists()


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "t.npy"
    write_tokens(path, [[1, 2, 3]], BYTES)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, before[1]))
    try:
        with pytest.raises(ValueError, match="make room there"):
            write_tokens(path, [[0] * 10**5], BYTES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert open_tokens(path, BYTES).tolist() == [1, 2, 3]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["t.npy", "t.npy.json"]
