"""How far ahead it pays to guess, by what was measured."""

import pytest

from farflung.model.depth import DEPTH_MAX, PROBE_TOKENS, DepthChooser, ForwardSeconds


def decode(
    chooser: DepthChooser,
    acceptance: float,
    fixed_seconds: float,
    seconds_per_position: float,
    num_tokens: int = 300,
    guess_seconds: float = 0.0,
) -> tuple[float, float]:
    """Decode on a link as stated, with every guess right so often; the newest mean depth, and tokens per second of the
    newest half over those without guesses."""
    num_settled, seconds, depths = 0, 0.0, list[int]()
    part = 0.0
    while num_settled < num_tokens:
        depth = chooser.depth(DEPTH_MAX)
        chooser.guessed(depth, depth * guess_seconds)
        num_right = 0
        while num_right < depth:
            part += acceptance  # as often as stated, without chance
            if part < 1:
                break
            part -= 1
            num_right += 1
        took = fixed_seconds + seconds_per_position * (depth + 1)
        chooser.settled(depth, num_right, took)
        num_settled += num_right + 1
        if num_settled > num_tokens / 2:
            seconds += took + depth * guess_seconds
            depths.append(depth)
    plain = num_tokens / 2 * (fixed_seconds + seconds_per_position)
    return sum(depths) / len(depths), plain / seconds


@pytest.mark.parametrize(
    ("acceptance", "fixed_seconds", "guess_seconds", "depth_range", "gain_min"),
    [
        (0.9, 0.2, 0.0, (9, 15), 4.0),
        (0.6, 0.2, 0.0, (3, 9), 1.9),
        (0.6, 0.2, 0.05, (1, 3), 1.2),
        (0.6, 0.0, 0.0, (0, 1), 0.95),
        (0.05, 0.2, 0.0, (0, 3), 0.98),
        (0.0, 0.001, 0.0, (0, 0.5), 0.95),
    ],
    ids=["far and right", "far", "far, guesses cost", "near: positions cost as much", "wrong", "near and wrong"],
)
def test_depth_follows_links_and_luck_and_never_costs_much(
    acceptance: float, fixed_seconds: float, guess_seconds: float, depth_range: tuple[float, float], gain_min: float
) -> None:
    depth, gain = decode(DepthChooser(), acceptance, fixed_seconds, 0.005, guess_seconds=guess_seconds)
    assert depth_range[0] <= depth <= depth_range[1]
    assert gain >= gain_min


def test_guessing_begins_again_when_it_pays_again() -> None:
    chooser = DepthChooser()
    assert decode(chooser, 0.0, 0.02, 0.01)[0] < 0.5
    depth, gain = decode(chooser, 1.0, 0.02, 0.01, num_tokens=100 * PROBE_TOKENS)
    assert depth > 8 and gain > 2


def test_one_stalled_forward_is_no_reason_to_guess_deeper() -> None:
    forwards = ForwardSeconds()
    for number in range(40):
        forwards.add(1 + number % 4, 0.1 + 0.01 * (number % 4))
    assert forwards.of(1) == pytest.approx(0.1, rel=0.01)
    assert forwards.of(16) == pytest.approx(0.25, rel=0.01)
    forwards.add(1, 30.0)
    assert forwards.of(1) < 0.14
