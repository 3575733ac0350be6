"""Guessing ahead for a model of a swarm (`--draft`): by what followed the same words, or by a small model here."""

import time

from transformers import AutoModelForCausalLM

from farflung.apps.library import ConnectedModel, load_tokenizer
from farflung.model.drafts import Drafter, DraftModel, PromptLookup
from farflung.model.generator import Speculation
from farflung.model.load import no_progress_bar
from farflung.model.source import ModelSource

OFF = "off"
LOOKUP = "lookup"


def speculation_of(choice: str, connected: ConnectedModel) -> Speculation | None:
    """`choice`: "off", "lookup", or the folder or Hub id of a small model, which is loaded whole on this machine.

    Raises:
        ValueError: an unknown model, or one with another vocabulary.
    """
    if choice == OFF:
        return None
    return Speculation(_drafter(choice, connected), time.monotonic)


def _drafter(choice: str, connected: ConnectedModel) -> Drafter:
    if choice == LOOKUP:
        return PromptLookup()
    source = ModelSource.open(choice)
    if load_tokenizer(source).get_vocab() != load_tokenizer(connected.source).get_vocab():
        raise ValueError(
            f"{source.name} cannot guess for {connected.source.name}, for it has another vocabulary: "
            f"give --draft a small model of the same family, or --draft {LOOKUP}"
        )
    with no_progress_bar():
        model = AutoModelForCausalLM.from_pretrained(source.location).eval()
    return DraftModel(model, connected.model.config.get_text_config().vocab_size)
