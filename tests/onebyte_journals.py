"""Small journals over a small model, made with the real rules: participants measure, or invent what they measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from farflung.learn.parameters import fingerprint
from farflung.systems.onebyte.header import Header, Schedule, TensorShape
from farflung.systems.onebyte.journal import JournalSection, JournalWriter, read_journal
from farflung.systems.onebyte.records import Part, Participant
from farflung.systems.onebyte.tensors import choose_tensors
from farflung.wire.identity import Identity

SEQUENCER = Identity(bytes([9]) * 32)
NUM_SLOTS = 12


def identity_of(number: int) -> Identity:
    return Identity(bytes([number + 1]) * 32)


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    """A Llama of 20,000 parameters with a tied head."""
    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=None,
        initializer_range=0.15,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def header_for(model: torch.nn.Module, patterns: Sequence[str] = ("all",), **changes: object) -> Header:
    """A header for this base model."""
    base = fingerprint(dict(model.named_parameters()))
    return bare_header(*choose_tensors(model, patterns), **{"base": base, "base_name": "tiny", **changes})


def bare_header(*tensors: TensorShape, **changes: object) -> Header:
    """A header for tensors of no model."""
    fields: dict[str, object] = {
        "run": bytes(range(16)),
        "base": bytes(32),
        "base_name": "none",
        "dtype": "float32",
        "tensors": tensors,
        "epsilon": 1e-2,
        "exponent": 20,
        "schedule": Schedule(rate=60),
        "num_slots": NUM_SLOTS,
        "sequencer": SEQUENCER.public_key,
        **changes,
    }
    return Header(**fields)  # type: ignore[arg-type]


def invented_codes(round_number: int, count: int, first_slot: int = 0) -> bytes:
    """Bytes as measurements look like: either sign, magnitudes around code 60."""
    random = np.random.default_rng([round_number, first_slot])
    codes = np.clip(random.normal(60, 9, count).round(), 0, 127).astype(np.uint8)
    return bytes(codes | (random.integers(0, 2, count).astype(np.uint8) << 7))


@dataclass(slots=True)
class Written:
    """A journal as it was written."""

    content: bytes
    section: JournalSection


def invented_journal(
    header: Header,
    *,
    num_rounds: int = 6,
    num_participants: int = 3,
    seal_every: int = 2,
    is_closed: bool = True,
    fork_at: int | None = None,
) -> Written:
    """Each round's slots are shared out evenly; in odd rounds the last participant's entries come a round late.

    `fork_at`: from this round on something else was measured.
    """
    file = BytesIO()
    writer = JournalWriter(file, header)
    for number in range(num_participants):
        writer.add(Participant(identity_of(number).public_key, f"node-{number}"))
    late: list[Part] = []
    share = header.num_slots // num_participants
    for number in range(num_rounds):
        salt = 1000 if fork_at is not None and number >= fork_at else 0
        parts = [
            Part(who, number, who * share, invented_codes(number + salt, share, who * share))
            for who in range(num_participants)
        ]
        late, ready = ([parts[-1]], parts[:-1] + late) if number % 2 else ([], parts + late)
        writer.add_round(ready)
        if number % seal_every == seal_every - 1:
            for who in writer.ledger.unsigned():
                writer.seal(who, identity_of(who))
    if is_closed:
        for who in writer.ledger.unsigned():
            writer.seal(who, identity_of(who))
        writer.close(SEQUENCER)
    file.seek(0)
    (section,) = read_journal(file, name="written.flj", is_unfinished_allowed=not is_closed)
    return Written(file.getvalue(), section)
