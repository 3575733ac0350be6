"""Real server processes die by `kill -9`, or freeze, in the middle of every way of generating: the words stay the same.

The moment is chosen by watching the generation, never by waiting. Both stages of the chain are struck in each run.
"""

import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor

from tests.loopback.fleet import Fleet, Program, wait_until

pytestmark = pytest.mark.loopback

NUM_NEW_TOKENS = 24
PROMPT = torch.tensor([[288, 292, 8, 20, 239, 200, 136, 147, 206]])
COMMON = {"max_new_tokens": NUM_NEW_TOKENS, "min_new_tokens": NUM_NEW_TOKENS, "do_sample": False}
WAYS: dict[str, dict[str, Any]] = {"decode": {}, "beam": {"num_beams": 4}, "lookup": {"prompt_lookup_num_tokens": 3}}


class At(LogitsProcessor):
    """Acts once the generated text has reached a length."""

    def __init__(self, actions: dict[int, Callable[[], None]]) -> None:
        self.actions = dict(actions)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for length in sorted(self.actions):
            if input_ids.shape[1] - PROMPT.shape[1] >= length:
                self.actions.pop(length)()
        return scores


def stage(fleet: Fleet, cache: Any, number: int) -> Program:
    """The process that holds a stage of the session's chain now."""
    return fleet.of(cache.session.chain.links[number].peer)


@pytest.mark.parametrize("way", WAYS)
def test_both_stages_are_killed(fleet: Fleet, model: Any, whole: Any, way: str) -> None:
    expected = whole.generate(PROMPT, **WAYS[way], **COMMON)
    with model.inference_session(num_tokens_max=4 * 64) as cache:
        kills = {
            5: lambda: fleet.replace(stage(fleet, cache, 0)),
            12: lambda: fleet.replace(stage(fleet, cache, 1)),
        }
        at = At(kills)
        output = model.generate(PROMPT, logits_processor=[at], **WAYS[way], **COMMON)
        assert not at.actions, "the generation ended before its servers could be killed"
        assert cache.session.num_replaced >= 2
    assert torch.equal(output, expected)


def test_rollback(fleet: Fleet, model: Any, whole: Any) -> None:
    """Killed right after the client forgot some positions, and again right after it fed others in their place."""
    text = torch.randint(1, 200, (1, 20), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode(), model.inference_session(num_tokens_max=64) as cache:
        model(text[:, :12], past_key_values=cache, use_cache=True)
        fleet.replace(stage(fleet, cache, 0))
        cache.crop(-5)
        model(text[:, 12:15], past_key_values=cache, use_cache=True)
        fleet.replace(stage(fleet, cache, 1))
        cache.crop(-1)
        logits = model(text[:, 15:], past_key_values=cache, use_cache=True).logits
        assert cache.session.num_replaced >= 2
        kept = torch.cat([text[:, :7], text[:, 12:14], text[:, 15:]], dim=1)
        torch.testing.assert_close(logits, whole(kept).logits[:, -5:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("number", [0, 1])
def test_prefill(fleet: Fleet, model: Any, whole: Any, number: int) -> None:
    """Killed while a long prompt is under way: the victim is frozen before it, so it cannot have answered."""
    text = torch.randint(1, 200, (1, 700), generator=torch.Generator().manual_seed(4))
    with model.inference_session(num_tokens_max=1024) as cache:
        with torch.inference_mode():
            model(text[:, :1], past_key_values=cache, use_cache=True)
        victim = stage(fleet, cache, number)
        victim.send(signal.SIGSTOP)

        def kill_under_way() -> None:
            wait_until(lambda: cache.session.length > 1, "the prompt is sent")
            fleet.replace(victim)

        killer = threading.Thread(target=kill_under_way)
        killer.start()
        with torch.inference_mode():
            logits = model(text[:, 1:], past_key_values=cache, use_cache=True).logits
        killer.join()
        assert cache.session.num_replaced >= 1
    torch.testing.assert_close(logits[:, -1], whole(text).logits[:, -1], atol=1e-4, rtol=1e-4)


def test_a_frozen_process_is_noticed_and_left(fleet: Fleet, model: Any, whole: Any) -> None:
    expected = whole.generate(PROMPT, **COMMON)
    frozen: list[Program] = []
    with model.inference_session(num_tokens_max=64) as cache:

        def freeze() -> None:
            frozen.append(stage(fleet, cache, 1))
            frozen[0].send(signal.SIGSTOP)

        try:
            output = model.generate(PROMPT, logits_processor=[At({8: freeze})], **COMMON)
        finally:
            for program in frozen:  # tests after this one need it, whatever has become of this one
                program.send(signal.SIGCONT)
        assert cache.session.num_replaced >= 1, "a machine this busy may lose others for a while too"
        assert stage(fleet, cache, 1) is not frozen[0]
    assert torch.equal(output, expected)
    reason = model._blocks.view._bans[frozen[0].peer].reason
    assert reason != "it does not answer", "its silence is noticed before it has been asked in vain"
    wait_until(lambda: frozen[0].peer in model._blocks.view.servers(), "it is back in the directory")
    assert frozen[0].is_alive
