"""From tokens to text as they come: never half a character, and stop strings found across the borders of tokens."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"
"""What decoders show for bytes that are no character, or not one yet."""

HELD_CHARACTERS_MAX = 3
"""A character has at most four bytes, so at most three replacement characters may still become one."""

CONTEXT_TOKENS = 8
"""How much of the prompt decides how the first generated token is spelled (a leading space, say)."""


class TextStream:
    """Decodes tokens one by one; text is given out once later tokens cannot change it."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Sequence[int] = (),
        shown_special_tokens: AbstractSet[int] = frozenset(),
    ) -> None:
        """Special tokens have no text, but for `shown_special_tokens`."""
        self._tokenizer = tokenizer
        self._hidden = frozenset(tokenizer.all_special_ids) - shown_special_tokens if shown_special_tokens else None
        self._context = list(prompt[-CONTEXT_TOKENS:])
        """Tokens whose text is out already; they decide how the next ones are spelled."""
        self._held: list[int] = []
        """Tokens after the context of which some text is not out yet."""
        text = self._decode(self._context)
        self._emitted = text[: _num_settled(text)]
        """What is out of the text of context and held tokens together."""

    def push(self, token: int) -> str:
        """Take one token; the text that is settled now, often that of this token, empty within a character."""
        self._held.append(token)
        text = self._decode(self._context + self._held)
        if not text.startswith(self._emitted):
            # Decoders with byte fallback show a whole run of bytes as replacements while its last character is open.
            if len(self._held) <= HELD_CHARACTERS_MAX:
                return ""
            self._context, self._emitted = [], ""
            text = self._decode(self._held)
        num_settled = max(_num_settled(text), len(self._emitted))
        piece = text[len(self._emitted) : num_settled]
        self._emitted += piece
        if num_settled == len(text):
            self._renew_context()
        return piece

    def finish(self) -> str:
        """The text still held; an incomplete character comes out as the replacement character."""
        text = self._decode(self._context + self._held)
        if not text.startswith(self._emitted):
            return self._decode(self._held)
        return text[len(self._emitted) :]

    def _renew_context(self) -> None:
        """Let the tokens that are out now be the context, so that each push costs the same."""
        text = self._decode(self._held)
        if text:  # special tokens alone have no text and would be no context
            self._context, self._held, self._emitted = self._held, [], text

    def _decode(self, tokens: list[int]) -> str:
        if self._hidden is not None:
            tokens = [token for token in tokens if token not in self._hidden]
        text = self._tokenizer.decode(
            tokens, skip_special_tokens=self._hidden is None, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text


def _num_settled(text: str) -> int:
    """How many characters of `text` stay as they are whatever token follows."""
    without = text.rstrip(REPLACEMENT)
    return max(len(without), len(text) - HELD_CHARACTERS_MAX)


class StopStrings:
    """Passes text through until one of the strings appears; neither it nor what follows comes out."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(string for string in strings if string)
        self._held = ""
        self.is_complete = False
        """Whether a stop string was found."""

    def push(self, text: str) -> str:
        """Take more text; what can be given out. A tail that may be the start of a stop string is held back."""
        if self.is_complete:
            return ""
        self._held += text
        starts = {string: self._held.find(string) for string in self._strings}
        found = [(start + len(string), start) for string, start in starts.items() if start >= 0]
        if found:
            # The one that is complete first, so that it makes no difference how the text was cut into pieces.
            _, start = min(found)
            self.is_complete = True
            passed, self._held = self._held[:start], ""
            return passed
        num_held = self._longest_start()
        passed = self._held[: len(self._held) - num_held]
        self._held = self._held[len(passed) :]
        return passed

    def finish(self) -> str:
        """What is still held, now that no more text comes."""
        passed, self._held = self._held, ""
        return passed

    def _longest_start(self) -> int:
        """Length of the longest tail of the held text with which a stop string begins."""
        longest = max((len(string) - 1 for string in self._strings), default=0)
        for length in range(min(longest, len(self._held)), 0, -1):
            tail = self._held[-length:]
            if any(string.startswith(tail) for string in self._strings):
                return length
        return 0
