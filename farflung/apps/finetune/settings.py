"""What one can set on a run's data and objective: [data] and [objective] of a run file."""

from dataclasses import dataclass, field
from typing import Literal

PLACE = "{text}"
"""Where a template has the text."""
HEAD_KINDS = ("classes", "scores", "preferences")
"""Objectives over a head of their own on the last token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """[data]: files with one example a line, TSV or JSON Lines (.jsonl)."""

    train: str
    test: str | None = None
    """Held out: nothing is learned from it."""
    text: str | int = "text"
    """Column of the text: a name, or a number from 0 in a TSV file without a line of names."""
    label: str | int | None = "label"
    """Column of the label: of the class, the score, or the worse text of a pair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveSettings:
    """[objective]: what is to become small."""

    kind: Literal["labels", "text", "reward", "classes", "scores", "preferences"] = "labels"
    """The last three train a head beside the model: methods lora and prompt."""
    template: str | None = None
    """The prompt; None: "{text}\\nlabel:", or for a head the text alone."""
    label_words: dict[str, str] = field(default_factory=dict[str, str])
    """The word that stands for each label, one token each; default: the label itself."""
    length_max: int = 512
    """Tokens of a sequence; of a longer one the last are kept."""
    reward: str = ""
    """module:function, for kind = "reward"."""
    answer_tokens: int = 32
    """How long an answer is that is given a reward."""

    def __post_init__(self) -> None:
        if self.whole_template.count(PLACE) != 1:
            raise ValueError(f"objective.template must have {PLACE} once, where the text goes")
        if self.length_max < 2 or self.answer_tokens < 1:
            raise ValueError("objective.length_max must be at least 2, and objective.answer_tokens at least 1")
        if (self.kind == "reward") != bool(self.reward):
            raise ValueError('objective.reward (module:function) goes with objective.kind = "reward", and only with it')

    @property
    def has_head(self) -> bool:
        """Whether a head is trained with it."""
        return self.kind in HEAD_KINDS

    @property
    def whole_template(self) -> str:
        """The one that was given, or the usual one."""
        if self.template is not None:
            return self.template
        return PLACE if self.has_head else f"{PLACE}\nlabel:"

    def prompt(self, text: str) -> str:
        """The template with the text in it."""
        return self.whole_template.replace(PLACE, text)

    def answer(self, label: str) -> str:
        """A label as it continues the prompt."""
        return label if self.whole_template[-1:].isspace() else f" {label}"
