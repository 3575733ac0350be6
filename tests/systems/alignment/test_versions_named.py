"""An answer must name published versions and their weights; who goes on naming others is banned."""

import msgspec
import pytest
import torch

from farflung.systems.alignment.admission import Admission
from farflung.systems.alignment.chain import Chain, Published
from farflung.systems.alignment.config import AlignmentConfig, PublishConfig
from farflung.systems.alignment.deltas import NOTHING, version_of
from farflung.systems.alignment.ledger import Ledger, LedgerState
from farflung.systems.alignment.rollouts import Rollout
from tests.alignments import SimulatedAlignment
from tests.tables import Kinds, TableAuditor, TablePolicy

CONFIG = AlignmentConfig(
    num_steps=8,
    prompts_per_step=4,
    answers_per_prompt=4,
    num_tokens_max=5,
    silence_seconds=3.0,
    staleness_max=3,
    publish=PublishConfig(steps_per_version=2),
    audit_share=1.0,
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
    assert admission.why_not(wrong) == ("false", f"its weights are not those of version {versions[-1]}")


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
    why_not = admission.why_not(answer(versions, hashes[NEWEST]))
    assert why_not is not None and why_not.reason == reason
    assert (why_not.kind == "stale") == ("too old" in reason)


class Prophet(TablePolicy):
    """Says of its answers that later weights have given them."""

    shift = 1_000

    def rollout(self, one: object) -> Rollout:
        found = super().rollout(one)  # pyright: ignore[reportArgumentType]
        return msgspec.structs.replace(
            found, versions=tuple(max(0, version + self.shift) for version in found.versions)
        )


class Between(Prophet):
    """Names a version between two that were published."""

    shift = -1


class Renamed(Prophet):
    """Names a version that there is, and other weights."""

    shift = 0

    def rollout(self, one: object) -> Rollout:
        return msgspec.structs.replace(super().rollout(one), weights_hash=b"other weights")


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (Prophet, "there is no version 100"),
        (Between, "there is no version 1: it was never published"),
        (Renamed, "its weights are not those of version"),
    ],
)
def test_a_worker_that_names_what_there_is_not_is_banned_and_the_run_goes_on(
    policy: type[TablePolicy], reason: str
) -> None:
    workers = {"honest": 1.0, "other": 1.0}
    with SimulatedAlignment(CONFIG, workers, policies={"other": policy}, auditor=TableAuditor()) as run:
        run.run()
        assert set(run.errors) == {"other"} and "is banned from this run" in str(run.errors["other"])
        ledger = run.trainer.ledger.state
        assert ledger.version == CONFIG.num_steps
        notes = " ".join(str(event) for event in run.simulation.trace.of("note"))
        assert "of other are of no use: " + reason in notes
        assert set(ledger.banned) == {"other"} and "of its answers are not of this run" in ledger.banned["other"]
        for version, rollouts in run.learners[-1].seen:
            assert all(set(rollout.versions) <= set(range(0, version + 1, 2)) for rollout in rollouts)
