"""Tokenizers: that of a model, one token for each byte, or one learnt from the data."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from farflung.learn.documents import Source

BYTES = "bytes"
END = "<|end|>"
"""Stands after every document."""
END_OF_BYTES = 256
"""The end mark's number where the others are bytes."""
LEARNT_SIZES = range(300, 1 << 20)
"""Vocabularies that learning gives: all bytes, the end mark and some merges; more than a million helps nobody."""
LEARNT_CHARACTERS_MAX = 50_000_000
"""Of all sources together, taken from them in turn: merges change little after that, and it takes a minute or two."""

CHAT_TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
"""A model that was only pretrained continues text: a conversation is the text so far."""

_PIECES = r"\n+|[ ]+(?=[ ])|[ ]?[A-Za-z]+|[ ]?[0-9]|[ ]?[^\sA-Za-z0-9]+|\s"
"""No token crosses these borders: line ends, indentation, words, digits, runs of signs."""


def open_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or Hub id, or `bytes`.

    Raises:
        ValueError: there is none, or it has no token that ends a text.
    """
    if name == BYTES:
        return byte_tokenizer()
    if not os.path.isdir(name) and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ValueError(f"there is no tokenizer folder {name}: give one, the id of a model on the Hub, or '{BYTES}'")
    try:
        auto: Any = AutoTokenizer
        tokenizer: Any = auto.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"no tokenizer can be read from {name} ({reason}): give a folder with tokenizer.json, the id of a model on "
            f"the Hub, or '{BYTES}'"
        ) from error
    end_token(tokenizer)
    return tokenizer


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a text.

    Raises:
        ValueError: the tokenizer has none.
    """
    described = cast(Any, tokenizer)  # its attributes have no types
    number: object = described.eos_token_id
    if not isinstance(number, int):
        raise ValueError(
            f"the tokenizer {described.name_or_path} has no token that ends a text: set its eos_token and save it again"
        )
    return number


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte of the text's UTF-8, numbered as the byte, and the end mark: 257 tokens."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = {character: _byte_of(character, alphabet) for character in alphabet}
    tokenizer = Tokenizer(models.BPE(vocab={**vocabulary, END: END_OF_BYTES}, merges=[]))
    tokenizer.pre_tokenizer = cast(Any, spelled)
    return _wrapped(tokenizer)


def _byte_of(character: str, alphabet: Sequence[str]) -> int:
    """Which byte this character stands for: printable ones for themselves, the others for what they shift."""
    shifted = sorted(set(range(256)) - {ord(each) for each in alphabet})
    return ord(character) if ord(character) < 256 else shifted[ord(character) - 256]


def learn_tokenizer(texts: Iterable[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of up to `vocabulary_size` tokens: the end mark (0), 256 bytes, and the most useful merges.

    Raises:
        ValueError: a size that no vocabulary should have.
    """
    if vocabulary_size not in LEARNT_SIZES:
        raise ValueError(
            f"a vocabulary of {vocabulary_size} tokens cannot be learnt: ask for {LEARNT_SIZES[0]} or more"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[END],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrapped(tokenizer)


def learnt_tokenizer(sources: Sequence[Source], vocabulary_size: int, cache_folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer learnt from these sources together; kept in the cache, named by what it was learnt from.

    Raises:
        ValueError: a source is not what the user said it is, an impossible size, or the cache cannot be written.
    """
    content = json.dumps([vocabulary_size, LEARNT_CHARACTERS_MAX, [source.fingerprint() for source in sources]])
    target = cache_folder / f"tokenizer-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
    if not target.is_dir():
        tokenizer: Any = learn_tokenizer(_sample(sources), vocabulary_size)
        unfinished = cache_folder / f".{target.name}.{os.getpid()}"
        try:
            tokenizer.save_pretrained(unfinished)
            _publish(unfinished, target)
        except OSError as error:
            raise ValueError(
                f"the tokenizer cannot be kept in {cache_folder} ({error.strerror}): make room there"
            ) from error
    return open_tokenizer(str(target))


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of what decides which tokens a text becomes: the same for a tokenizer that was saved and opened again."""
    described: Any = tokenizer.get_vocab()
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        described = json.loads(tokenizer.backend_tokenizer.to_str())
        for state in ("padding", "truncation"):  # what the last call asked for, not what the tokenizer is
            described.pop(state)
    content = json.dumps([described, end_token(tokenizer)], sort_keys=True)
    return hashlib.sha256(content.encode(errors="surrogatepass")).hexdigest()


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, chat_template=CHAT_TEMPLATE)


def _sample(sources: Sequence[Source]) -> Iterator[str]:
    """Texts of all sources in turn, until there are enough characters."""
    readers = [source.pieces() for source in sources]
    num_characters = 0
    while readers and num_characters < LEARNT_CHARACTERS_MAX:
        for reader in list(readers):
            piece = next(reader, None)
            if piece is None:
                readers.remove(reader)
            else:
                num_characters += len(piece.text)
                yield piece.text


def _publish(unfinished: Path, target: Path) -> None:
    try:
        unfinished.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        # Another process was first; what it learnt is the same.
        for path in unfinished.iterdir():
            path.unlink()
        unfinished.rmdir()
