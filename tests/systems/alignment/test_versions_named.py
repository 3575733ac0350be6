"""An answer must name versions that were published, and the weights of the newest of them; else it is refused."""

import msgspec
import pytest
import torch

from farflung.systems.alignment.admission import Admission
from farflung.systems.alignment.chain import Chain, Published
from farflung.systems.alignment.config import AlignmentConfig, PublishConfig
from farflung.systems.alignment.deltas import NOTHING, version_of
from farflung.systems.alignment.ledger import Ledger, LedgerState
from farflung.systems.alignment.rollouts import Rollout
from tests.tables import Kinds

CONFIG = AlignmentConfig(
    num_steps=8,
    prompts_per_step=4,
    answers_per_prompt=4,
    num_tokens_max=5,
    staleness_max=3,
    publish=PublishConfig(steps_per_version=2),
)
NEWEST = 4
"""Versions 0, 2 and 4 are published."""


def admission_at(step: int) -> tuple[Admission, dict[int, bytes]]:
    """After so many steps, and the hash of every published version."""
    chain, base = Chain(CONFIG, Published()), NOTHING
    hashes: dict[int, bytes] = {}
    for number in range(0, NEWEST + 1, 2):
        new = version_of(number, {"table": torch.full((4, 6), float(number))})
        chain.add(chain.pack(new, base, None))
        base, hashes[number] = new, new.weights_hash
    ledger = Ledger(CONFIG, LedgerState(version=step, first_open=step * CONFIG.prompts_per_step))
    return Admission(CONFIG, ledger, chain, Kinds()), hashes


def answer(versions: tuple[int, ...], weights_hash: bytes, prompt: int = 20) -> Rollout:
    return Rollout(
        prompt=prompt,
        member=0,
        prompt_tokens=Kinds().prompt(prompt),
        answer_tokens=(1,) * len(versions),
        log_probabilities=(-0.5,) * len(versions),
        versions=versions,
        weights_hash=weights_hash,
        seed=CONFIG.seed,
        finish_reason="length",
    )


@pytest.mark.parametrize("versions", [(2, 2), (4, 4), (2, 4)])
def test_published_versions_are_believed_and_their_weights_must_be_right(versions: tuple[int, ...]) -> None:
    admission, hashes = admission_at(step=5)
    right = answer(versions, hashes[versions[-1]])
    assert admission.why_not(right) is None
    wrong = msgspec.structs.replace(right, weights_hash=hashes[0])
    assert admission.why_not(wrong) == f"its weights are not those of version {versions[-1]}"


@pytest.mark.parametrize(
    ("versions", "reason"),
    [
        ((4, 5), "there is no version 5 yet"),
        ((1_000_000,), "there is no version 1000000 yet"),
        ((3, 3), "there is no version 3: it was never published"),
        ((2, 3, 4), "there is no version 3: it was never published"),
        ((0, 4), "version 0 is too old, 2 is the oldest that is trained on"),
    ],
)
def test_versions_that_there_are_not_are_refused_by_number(versions: tuple[int, ...], reason: str) -> None:
    admission, hashes = admission_at(step=5)
    assert admission.why_not(answer(versions, hashes[NEWEST])) == reason
