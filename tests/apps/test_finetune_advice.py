"""The words before a fine-tune are true to the numbers of its model and links."""

from dataclasses import replace

import pytest

from farflung.apps.finetune.advice import FORWARD_PASSES, Setting, advise

SETTING = Setting(
    num_parameters=1_300_000_000,
    bytes_per_parameter=2.0,
    tokens_per_entry=512,
    entries_per_round=128,
    num_machines=4,
    bytes_per_second=1e6,
    latency_seconds=0.05,
    flops_per_second=1e12,
)


def seconds_per_step(setting: Setting, bandwidth: float) -> tuple[float, list[float]]:
    """Of back-propagation, and of zeroth order at its best and worst, as one would write it down."""
    n, p, t, speed = setting.num_machines, setting.num_parameters, setting.tokens_per_entry, 1e12
    backward = 6 * p * t / speed / n + 2 * (n - 1) / n * 2 * p / bandwidth + 2 * (n - 1) * setting.latency_seconds
    forwards = [
        k * 2 * p * t / speed / n + k / 2 * 1.1 / bandwidth + k / 2 / setting.entries_per_round * 2 * 0.05
        for k in FORWARD_PASSES
    ]
    return backward, forwards


def test_at_the_crossover_both_take_as_long() -> None:
    at_worst, at_best = advise(SETTING).crossover_bits_per_second
    assert at_worst < at_best
    for bandwidth, which in ((at_best / 8, 0), (at_worst / 8, 1)):
        backward, forwards = seconds_per_step(SETTING, bandwidth)
        assert forwards[which] == pytest.approx(backward, rel=1e-6)


def test_the_verdict_follows_the_link() -> None:
    at_worst, at_best = (bits / 8 for bits in advise(SETTING).crossover_bits_per_second)
    for bandwidth, verdict in (
        (at_worst / 2, "one byte is the faster way even at its worst"),
        ((at_worst * at_best) ** 0.5, "either may be faster"),
        (at_best * 2, "back-propagation with whole gradients is faster"),
    ):
        assert verdict in " ".join(advise(replace(SETTING, bytes_per_second=bandwidth)).sentences)


def test_it_says_what_zeroth_order_costs_and_what_else_there_is() -> None:
    said = advise(SETTING).sentences
    assert "10 to 100 times more forward passes" in said[0]
    assert "141 B" in said[1] and "2.6 GB" in said[1] and "18.5 M times" in said[1]
    assert "fedavg-lora" in said[3] and all("\n" not in sentence for sentence in said)
    assert "50 GFLOP/s" in advise(replace(SETTING, flops_per_second=None)).sentences[2]


def test_one_machine_has_nothing_to_send_and_long_ways_leave_no_crossover() -> None:
    alone = advise(replace(SETTING, num_machines=1))
    assert alone.crossover_bits_per_second == (0.0, 0.0) and "nothing to send" in alone.sentences[2]
    far = advise(replace(SETTING, num_parameters=1000, latency_seconds=60.0, num_machines=64))
    assert far.crossover_bits_per_second[1] == float("inf") and "any bandwidth" in far.sentences[2]


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one parameter"):
        replace(SETTING, num_parameters=0)
    with pytest.raises(ValueError, match="bandwidth above 0"):
        replace(SETTING, bytes_per_second=0.0)
