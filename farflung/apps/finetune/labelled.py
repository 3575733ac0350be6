"""What a run learns from: labelled texts as prompts and answers, and the objective over them.

labels   the prompt is the template with the text in it; what is learned is which label's word comes next
text     what comes next is the label, whatever text it is, or, if the file has none, the text itself
reward   a function of the user's values what the model answers to the prompt (`rewards.py`)
classes, scores, preferences   a head reads the last token of the prompt (`swarm/objectives.py`)
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from farflung.apps.finetune.examples import Example, read_examples
from farflung.apps.finetune.rewards import TextReward, load_reward
from farflung.apps.finetune.rows import Batches, Rows
from farflung.apps.finetune.settings import DataSettings, ObjectiveSettings
from farflung.apps.finetune.swarm.objectives import ClassLoss, PreferenceLoss, ScoreLoss
from farflung.apps.finetune.swarm.rows import PairedRows, ScoredRows
from farflung.learn.tokenizer import end_token
from farflung.systems.onebyte.objective import LabelWordLoss, NextTokenLoss, Objective, label_words

LABELS_SHOWN_MAX = 12


@dataclass(frozen=True, slots=True)
class TuningTask:
    """Data and objective of a run."""

    objective: Objective
    train: Rows
    test: Rows | None

    def batches(self, batch_size: int, seed: str) -> Batches:
        """The batch of each round."""
        return Batches(self.train, batch_size, seed)


def read_task(
    data: DataSettings, objective: ObjectiveSettings, tokenizer: PreTrainedTokenizerBase, model: nn.Module | None
) -> TuningTask:
    """Read the files and tokenize them for this model; None: one that is told no positions.

    Raises:
        ValueError: a file or column is missing, a label has no word, a word is not one token, no such reward.
    """
    if objective.kind not in ("text", "reward") and data.label is None:
        raise ValueError(
            f'objective.kind = "{objective.kind}" needs data.label, the column of the labels; "text" does without'
        )
    files = [data.train] if data.test is None else [data.train, data.test]
    read = [read_examples(Path(file).expanduser(), data.text, data.label) for file in files]
    has_positions = model is not None and "position_ids" in inspect.signature(model.forward).parameters
    loss, rows = _READERS[objective.kind](read, objective, tokenizer, has_positions)
    return TuningTask(loss, rows[0], rows[1] if data.test is not None else None)


Read = Callable[[list[list[Example]], ObjectiveSettings, PreTrainedTokenizerBase, bool], tuple[Objective, list[Rows]]]


def _with_label_words(
    files: list[list[Example]], settings: ObjectiveSettings, tokenizer: PreTrainedTokenizerBase, has_positions: bool
) -> tuple[LabelWordLoss, list[Rows]]:
    words = settings.label_words or {
        label: settings.answer(label) for label in sorted({example.label for example in files[0]})
    }
    loss = label_words(lambda word: _encode(tokenizer, word), list(words.values()))
    numbers = {label: number for number, label in enumerate(words)}
    answers = [[_number_of(example, numbers, settings) for example in examples] for examples in files]
    return loss, [
        _prompts(examples, settings, tokenizer, numbers_of, has_positions)
        for examples, numbers_of in zip(files, answers, strict=True)
    ]


def _with_texts(
    files: list[list[Example]], settings: ObjectiveSettings, tokenizer: PreTrainedTokenizerBase, has_positions: bool
) -> tuple[NextTokenLoss, list[Rows]]:
    return NextTokenLoss(), [
        _whole([_text_tokens(example, settings, tokenizer) for example in examples], settings.length_max, has_positions)
        for examples in files
    ]


def _with_rewards(
    files: list[list[Example]], settings: ObjectiveSettings, tokenizer: PreTrainedTokenizerBase, has_positions: bool
) -> tuple[TextReward, list[Rows]]:
    labels = list(dict.fromkeys(example.label for examples in files for example in examples))
    numbers = {label: number for number, label in enumerate(labels)}
    loss = TextReward(load_reward(settings.reward), tokenizer, tuple(labels), settings.answer_tokens)
    return loss, [
        _prompts(examples, settings, tokenizer, [numbers[example.label] for example in examples], has_positions)
        for examples in files
    ]


def _with_classes(
    files: list[list[Example]], settings: ObjectiveSettings, tokenizer: PreTrainedTokenizerBase, has_positions: bool
) -> tuple[ClassLoss, list[Rows]]:
    classes = sorted({example.label for example in files[0]})
    if len(classes) < 2:
        raise ValueError(f"all training examples have the label {classes[0]!r}: give examples of two classes at least")
    numbers = {label: number for number, label in enumerate(classes)}
    return ClassLoss(tuple(classes)), [
        _prompts(examples, settings, tokenizer, [_number_of(one, numbers, settings) for one in examples], has_positions)
        for examples in files
    ]


def _with_scores(
    files: list[list[Example]], settings: ObjectiveSettings, tokenizer: PreTrainedTokenizerBase, has_positions: bool
) -> tuple[ScoreLoss, list[Rows]]:
    return ScoreLoss(), [
        ScoredRows.of(
            _prompts(examples, settings, tokenizer, [0] * len(examples), has_positions),
            tuple(_score_of(example) for example in examples),
        )
        for examples in files
    ]


def _with_preferences(
    files: list[list[Example]], settings: ObjectiveSettings, tokenizer: PreTrainedTokenizerBase, has_positions: bool
) -> tuple[PreferenceLoss, list[Rows]]:
    rows: list[Rows] = []
    for examples in files:
        worse = [example._replace(text=example.label) for example in examples]
        empty = next((example for example in worse if not example.text.strip()), None)
        if empty is not None:
            raise ValueError(f"{empty.where} has an empty worse text: take the line out")
        none = [0] * len(examples)
        better, other = (_prompts(each, settings, tokenizer, none, has_positions) for each in (examples, worse))
        rows.append(PairedRows.of(better, other.tokens))
    return PreferenceLoss(), rows


def _score_of(example: Example) -> float:
    try:
        score = float(example.label)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"{example.where} has the score {example.label!r}, which is no number: correct the line")
    return score


_READERS: Mapping[str, Read] = {
    "labels": _with_label_words,
    "text": _with_texts,
    "reward": _with_rewards,
    "classes": _with_classes,
    "scores": _with_scores,
    "preferences": _with_preferences,
}


def _number_of(example: Example, numbers: Mapping[str, int], settings: ObjectiveSettings) -> int:
    if example.label in numbers:
        return numbers[example.label]
    known = ", ".join(list(numbers)[:LABELS_SHOWN_MAX])
    where = "objective.label_words has no word" if settings.label_words else "the training file has no example"
    raise ValueError(
        f"{example.where} has the label {example.label!r}, for which {where} (known are: {known}): correct the line, "
        f"or give a word for each label in [objective.label_words]"
    )


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, *, is_beginning: bool = False) -> list[int]:
    """A text's tokens, at the beginning of a sequence with what the tokenizer puts there."""
    described: Any = tokenizer  # its methods have partial types
    return list(described.encode(text, add_special_tokens=is_beginning))


def _prompts(
    examples: Sequence[Example],
    settings: ObjectiveSettings,
    tokenizer: PreTrainedTokenizerBase,
    answers: Sequence[int],
    has_positions: bool,
) -> Rows:
    prompts = [_encode(tokenizer, settings.prompt(example.text), is_beginning=True) for example in examples]
    tokens = tuple(tuple(prompt[-settings.length_max :]) for prompt in prompts)
    return Rows(tokens, tuple(len(row) for row in tokens), tuple(answers), has_positions)


def _text_tokens(
    example: Example, settings: ObjectiveSettings, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    """What is given, and what is learned."""
    end = [end_token(tokenizer)]
    if not example.label:
        return [], _encode(tokenizer, example.text, is_beginning=True) + end
    given = _encode(tokenizer, settings.prompt(example.text), is_beginning=True)
    return given, _encode(tokenizer, settings.answer(example.label)) + end


def _whole(pairs: Sequence[tuple[list[int], list[int]]], length_max: int, has_positions: bool) -> Rows:
    tokens = tuple(tuple((given + learned)[-length_max:]) for given, learned in pairs)
    num_given = tuple(max(0, len(row) - len(learned)) for row, (_, learned) in zip(tokens, pairs, strict=True))
    return Rows(tokens, num_given, None, has_positions)
