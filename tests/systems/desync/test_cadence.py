"""When what is due, and what follows from measured times."""

import pytest

from farflung.systems.desync.cadence import Cadence, choose_by_drift, choose_periods, half_life_steps
from farflung.systems.desync.config import DesyncConfig, RoundConfig, ddp, desloc, diloco, farflung
from farflung.systems.desync.forming import plan_round


def test_each_state_is_due_at_its_multiples_but_not_at_the_beginning() -> None:
    cadence = desloc(1, 4, {"first_moment": 6, "second_moment": 8}).cadence
    due = {step: cadence.due(step) for step in range(13) if cadence.due(step)}
    assert due == {
        4: ("parameters",),
        6: ("first_moment",),
        8: ("parameters", "second_moment"),
        12: ("parameters", "first_moment"),
    }
    assert [cadence.next_due(step) for step in (0, 4, 5, 6, 8)] == [4, 6, 6, 8, 12]


def test_fragments_take_turns() -> None:
    cadence = diloco(1, 8, num_fragments=4).cadence
    names = [cadence.due(step) for step in range(2, 18, 2)]
    assert names == [(f"parameters/{number % 4}",) for number in range(1, 9)]
    assert [cadence.next_due(step) for step in (0, 1, 2, 7)] == [2, 2, 4, 8]


def test_a_site_is_not_averaged_when_all_sites_are() -> None:
    cadence = diloco(1, 6, site_parameters_every=2).cadence
    assert [cadence.due(step) for step in (2, 4, 6)] == [("site",), ("site",), ("parameters",)]
    assert cadence.everything == ("parameters",)


def test_half_lives_are_those_of_the_paper() -> None:
    assert [round(half_life_steps(beta), 1) for beta in (0.95, 0.999)] == [13.5, 692.8]
    assert round(half_life_steps(0.9999)) == 6931


def test_periods_follow_from_times_and_half_lives() -> None:
    decays = {"first_moment": 0.95, "second_moment": 0.999}
    choice = choose_periods(0.5, 10.0, decays)
    assert (choice.parameters_every, choice.moments_every) == (200, {"first_moment": 200, "second_moment": 600})
    assert "10%" in choice.reason
    fast = choose_periods(0.5, 0.01, {"first_moment": 0.95})
    assert (fast.parameters_every, fast.moments_every) == (1, {"first_moment": 14})
    assert choose_periods(0.5, 10.0, {}, multiple_of=16).parameters_every == 208
    assert choose_periods(0.5, 1e6, {}, multiple_of=100).parameters_every == 500, "there is a longest period"


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_periods_converge_to_the_drift_that_is_wanted(power: float) -> None:
    every = 4
    for _ in range(20):
        choice = choose_by_drift(every, 0.001 * every**power, {"first_moment": 0.9}, drift_max=0.008)
        assert every / 2 <= choice.parameters_every <= every * 2
        every = choice.parameters_every
    assert 0.001 * every**power == pytest.approx(0.008, rel=0.1)
    bounded = choose_by_drift(100, 1.0, {}, drift_max=0.01, parameters_every_min=80)
    assert bounded.parameters_every == 80 and "would cost too much time" in bounded.reason


def test_the_budget_cuts_the_last_round_and_averages_everything_then() -> None:
    config = desloc(100, 8, {"first_moment": 16})
    assert plan_round(0, 0, [1.0, 1.0], config).num_steps == 8
    last = plan_round(48, 96, [1.0, 1.0], config)
    assert (last.num_steps, last.due) == (2, ("parameters", "first_moment"))
    assert plan_round(50, 100, [1.0, 1.0], config).num_steps == 0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"parameters_every": 0}, "at least 1 step"),
        ({"parameters_every": 8, "moments_every": {"first_moment": 4}}, "never average a moment more often"),
        ({"codec": "int3"}, "'int3' is unknown"),
        ({"weights": "luck"}, "weights must be one of"),
        ({"topology": "mesh"}, "topology must be one of"),
        ({"parameters_every": 8, "num_fragments": 3}, "must be a multiple of num_fragments"),
        ({"is_free_running": True}, "set is_overlapped too"),
        ({"moments_every": {"first_moment": 64}, "is_overlapped": True}, "say how first_moment ages"),
        ({"averages_gradients": True}, "at every step"),
        ({"site_parameters_every": 64}, "must not be above parameters_every"),
        ({"feedback_decay": 2.0}, "feedback_decay must be"),
        ({"part_values_max": 100}, "multiple of 64"),
        ({"num_worker_steps": 0}, "at least 1"),
        ({"periods": "often"}, "periods must be one of fixed, auto, drift"),
        ({"periods": "auto", "averages_gradients": True, "parameters_every": 1}, "leave periods out"),
        ({"periods": "auto", "moments_every": {"first_moment": 64}}, "say how first_moment ages"),
        ({"wire_share_max": 0.0}, "wire_share_max is a share"),
        ({"drift_max": 0.0}, "drift_max must be above 0"),
        ({"moment_codec": "auto"}, "moment_codec 'auto' is unknown"),
    ],
)
def test_wrong_settings_are_refused_in_a_sentence(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        DesyncConfig(**({"num_worker_steps": 100} | settings))  # pyright: ignore[reportArgumentType]


def test_impatient_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="above 0 seconds"):
        RoundConfig(deadline_seconds=0)
    with pytest.raises(ValueError, match="at least 1"):
        RoundConfig(quorum=0)


def test_other_settings_have_another_fingerprint() -> None:
    configs = [ddp(10), diloco(10, 2), diloco(10, 4), diloco(10, 2, codec="int4"), farflung(10), desloc(10, 2)]
    assert len({config.fingerprint for config in configs}) == len(configs)
    assert diloco(10, 2).fingerprint == diloco(10, 2).fingerprint


def test_a_period_below_one_step_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 step"):
        Cadence(periods={"parameters": 0})
