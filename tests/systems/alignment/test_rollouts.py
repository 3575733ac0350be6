"""What a rollout must be is checked before anything else looks at it."""

import msgspec
import pytest

from farflung.systems.alignment.config import AlignmentConfig, PublishConfig
from farflung.systems.alignment.rollouts import Rollout, fault_of

SOUND = Rollout(
    prompt=3,
    member=1,
    prompt_tokens=(1, 2),
    answer_tokens=(4, 5, 6),
    log_probabilities=(-0.5, 0.0, -1.0),
    versions=(2, 2, 3),
    weights_hash=bytes(32),
    seed=7,
    finish_reason="stop",
    observed=((1, 2),),
)


def test_a_sound_rollout_has_no_fault_and_knows_its_oldest_weights() -> None:
    assert fault_of(SOUND, num_tokens_max=3) is None
    assert SOUND.version_min == 2 and SOUND.key == (3, 1)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"answer_tokens": ()}, "0 tokens"),
        ({"answer_tokens": (1, 2, 3, 4)}, "4 tokens"),
        ({"versions": (2, 2)}, "differ in number"),
        ({"log_probabilities": (-0.5, 0.1, -1.0)}, "log-probability"),
        ({"log_probabilities": (-0.5, float("nan"), -1.0)}, "log-probability"),
        ({"log_probabilities": (-0.5, -float("inf"), -1.0)}, "log-probability"),
        ({"versions": (3, 2, 2)}, "do not grow"),
        ({"versions": (-1, 2, 2)}, "do not grow"),
        ({"observed": ((2, 1),)}, "in no order"),
        ({"observed": ((1, 9),)}, "in no order"),
    ],
)
def test_what_no_sampler_sends_is_named(change: dict[str, object], word: str) -> None:
    fault = fault_of(msgspec.structs.replace(SOUND, **change), num_tokens_max=3)
    assert fault is not None and word in fault


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"staleness_max": -1}, "staleness_max"),
        ({"publish": PublishConfig(steps_per_version=3)}, "publish at least every 2 steps"),
        ({"answers_per_prompt_min": 9}, "answers_per_prompt_min"),
        ({"audit_share": 1.5}, "audit_share"),
        ({"lease_seconds": 0.0}, "lease_seconds"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_a_sentence(settings: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        AlignmentConfig(num_steps=1, **settings)  # pyright: ignore[reportArgumentType]
