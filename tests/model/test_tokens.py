"""Text from tokens as they come: whole characters only, equal to decoding at once, stop strings across borders."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from farflung.model.tokens import REPLACEMENT, StopStrings, TextStream


def byte_level() -> PreTrainedTokenizerFast:
    """GPT-2's kind: any byte is a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<end>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox and the lazy dog, the end"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def byte_fallback() -> PreTrainedTokenizerFast:
    """Llama's kind: words with a mark for the space before them, bytes for what is unknown."""
    words = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "▁fox", "th", "e", "é"]
    tokenizer = Tokenizer(
        models.BPE({word: number for number, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


TOKENIZERS = {"byte level": byte_level(), "byte fallback": byte_fallback()}


def pieces_of(tokenizer: PreTrainedTokenizerFast, tokens: list[int], prompt: list[int]) -> list[str]:
    stream = TextStream(tokenizer, prompt)
    return [*(stream.push(token) for token in tokens), stream.finish()]


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=st.text(alphabet=st.sampled_from("the fox é你🦊𝄞\n"), max_size=30))
def test_pieces_add_up_and_none_ends_within_a_character(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    tokens = tokenizer.encode(text, add_special_tokens=False)
    pieces = pieces_of(tokenizer, tokens, prompt=[])
    assert "".join(pieces) == tokenizer.decode(tokens)
    assert all(REPLACEMENT not in piece for piece in pieces)


@given(tokens=st.lists(st.integers(0, 299), max_size=40))
def test_any_bytes_add_up_to_what_decoding_at_once_gives(tokens: list[int]) -> None:
    tokenizer = TOKENIZERS["byte level"]
    tokens = [token for token in tokens if token < len(tokenizer)]
    assert "".join(pieces_of(tokenizer, tokens, prompt=[])) == tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("kind", "prompt_text", "text"),
    [("byte level", "the quick", " fox 你"), ("byte fallback", "the", " fox the")],
)
def test_an_answer_begins_as_it_would_within_the_whole_text(kind: str, prompt_text: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    prompt = tokenizer.encode(prompt_text, add_special_tokens=False)
    whole = tokenizer.encode(prompt_text + text, add_special_tokens=False)
    assert whole[: len(prompt)] == prompt
    assert "".join(pieces_of(tokenizer, whole[len(prompt) :], prompt)) == text


def test_special_tokens_have_no_text_and_do_not_eat_the_space_after_them() -> None:
    tokenizer = TOKENIZERS["byte fallback"]
    the, end, fox = (tokenizer.get_vocab()[word] for word in ("▁the", "</s>", "▁fox"))
    assert pieces_of(tokenizer, [the, end, fox], prompt=[]) == ["the", "", " fox", ""]


def test_a_long_answer_does_not_decode_itself_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_level()
    lengths: list[int] = []
    decode: Any = tokenizer.decode

    def counting(tokens: list[int], **options: Any) -> str:
        lengths.append(len(tokens))
        return decode(tokens, **options)

    monkeypatch.setattr(tokenizer, "decode", counting)
    pieces_of(tokenizer, tokenizer.encode("the quick brown fox 你 " * 20), prompt=[])
    assert max(lengths) <= 10


def through(strings: list[str], pieces: list[str]) -> tuple[str, bool]:
    stop = StopStrings(strings)
    text = "".join(stop.push(piece) for piece in pieces)
    return (text if stop.is_complete else text + stop.finish()), stop.is_complete


def test_a_stop_string_is_found_across_pieces_and_does_not_come_out() -> None:
    assert through(["END"], ["one E", "N", "D two"]) == ("one ", True)
    assert through(["END"], ["one E", "N", "E two"]) == ("one ENE two", False)
    assert through(["aab"], list("aaab")) == ("a", True)
    assert through(["long stop", "st"], ["a long st"]) == ("a long ", True)
    assert through([], ["any", "thing"]) == ("anything", False)


def test_text_that_may_begin_a_stop_string_is_held_back() -> None:
    stop = StopStrings(["\n\n"])
    assert stop.push("line\n") == "line"
    assert stop.push("more") == "\nmore"


@given(
    text=st.text(alphabet="ab", max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=8),
    stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3),
)
def test_where_pieces_are_cut_makes_no_difference(text: str, cuts: list[int], stops: list[str]) -> None:
    borders = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[first:last] for first, last in itertools.pairwise(borders)]
    assert through(stops, pieces) == through(stops, list(text))
