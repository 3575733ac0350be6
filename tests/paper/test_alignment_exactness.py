"""ECHO's first claim as an equality: Sequential gives the tokens and the weights of sampling and training in one place.

To the bit, in float32 on one thread: whole models and adapters, one rollout node and several.
"""

from collections.abc import Callable
from typing import Any

import pytest

from farflung.learn.parameters import fingerprint
from tests.alignment_exactness import assert_same, in_one_place, sequential, whole, with_adapter
from tests.policies import small_model

NUM_STEPS = 20
# Of peft, which asks transformers under a name that it will lose.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.mark.parametrize(
    ("prepare", "num_workers", "num_steps"),
    [
        (whole, 3, NUM_STEPS),
        (with_adapter, 1, 4),
        pytest.param(whole, 1, NUM_STEPS, marks=pytest.mark.slow),
        pytest.param(with_adapter, 3, NUM_STEPS, marks=pytest.mark.slow),
    ],
)
def test_sequential_is_training_in_one_place(prepare: Callable[[Any], Any], num_workers: int, num_steps: int) -> None:
    assert_same(sequential(prepare, num_workers, num_steps), in_one_place(prepare, num_steps))


def test_an_adapter_alone_is_published_and_the_base_stays() -> None:
    learner = in_one_place(with_adapter, 4)
    names = list(learner.snapshot())
    assert names and all("lora_" in name for name in names)
    base = {name: value for name, value in learner.model.named_parameters() if "lora_" not in name}
    untouched = {name: value for name, value in with_adapter(small_model()).named_parameters() if "lora_" not in name}
    assert fingerprint(base) == fingerprint(untouched)
