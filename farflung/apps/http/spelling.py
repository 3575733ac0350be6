"""How single tokens are spelled in log-probabilities: as text where they are text, else by their bytes."""

import json
from functools import lru_cache

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

_BYTE_OF_CHARACTER = {character: byte for byte, character in bytes_to_unicode().items()}
"""Byte-level vocabularies write each byte as one printable character."""


class Spelling:
    """Spells the tokens of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        self._is_byte_level = _has_byte_level_decoder(tokenizer)
        self.bytes_of = lru_cache(maxsize=65536)(self._bytes_of)
        self.text_of = lru_cache(maxsize=65536)(self._text_of)

    def num_characters_of(self, token: int) -> int:
        """By how much `token` lengthens a text: special tokens and parts of characters do not."""
        return 0 if token in self._special else len(self.bytes_of(token).decode(errors="ignore"))

    def _bytes_of(self, token: int) -> bytes:
        """The bytes for which `token` stands."""
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if isinstance(piece, str):
            if self._is_byte_level and all(character in _BYTE_OF_CHARACTER for character in piece):
                return bytes(_BYTE_OF_CHARACTER[character] for character in piece)
            if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
                return bytes([int(piece[3:5], 16)])
            if piece.startswith("▁"):  # a decoder drops the space that this mark stands for at the start of a text
                return piece.replace("▁", " ").encode()
        text = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text.encode()

    def _text_of(self, token: int) -> str:
        r"""The token as text; "bytes:\xe4\xbd" for a part of a character, so that different tokens differ."""
        spelled = self.bytes_of(token)
        try:
            return spelled.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


def _has_byte_level_decoder(tokenizer: PreTrainedTokenizerBase) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and '"ByteLevel"' in json.dumps(json.loads(backend.to_str()).get("decoder"))
