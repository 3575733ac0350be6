"""DES-LOC and its special cases as equalities with loops written by hand."""

import pytest
import torch

from farflung.learn.rules import Nesterov
from farflung.systems.desync.cadence import Cadence, scaled_steps
from farflung.systems.desync.config import DesyncConfig, ddp, desloc, diloco, local_adam
from tests.desyncs import Quadratic, SimulatedDesync

torch.set_num_threads(1)

NUM_WORKERS = 4
NAMES = tuple(f"w{number}" for number in range(NUM_WORKERS))
NUM_STEPS = 24


def engine(config: DesyncConfig, optimizer: str, momentum: float = 0.9) -> list[torch.Tensor]:
    """Every worker's parameters at the end of a run of `NUM_STEPS` steps each."""

    def make(name: str) -> Quadratic:
        return learner(int(name[1:]), optimizer, momentum)

    with SimulatedDesync(config, NAMES, make_learner=make) as desync:
        desync.run(deadline=1000)
        assert desync.coordinator.num_credited == NUM_WORKERS * NUM_STEPS
        return [desync.parameters(name) for name in NAMES]


def learner(number: int, optimizer: str, momentum: float = 0.9) -> Quadratic:
    return Quadratic(number, optimizer=optimizer, momentum=momentum, learning_rate=0.02)


def values(one: Quadratic) -> torch.Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in one.parameters.values()])


@torch.no_grad()
def average(replicas: list[Quadratic], what: str) -> None:
    """Give all of them the mean of their parameters, gradients or one moment."""
    sets = [one.parameters if what in ("parameters", "gradients") else one.moments[what] for one in replicas]
    for name in sets[0]:
        tensors = [one[name].grad if what == "gradients" else one[name] for one in sets]
        present = [one for one in tensors if one is not None]
        mean = torch.stack(present).mean(0)
        for one in present:
            one.copy_(mean)


def by_hand(optimizer: str, periods: dict[str, int], momentum: float = 0.9) -> torch.Tensor:
    """The listing of the paper: before step t, average what has t % K == 0; in the end, everything."""
    replicas = [learner(number, optimizer, momentum) for number in range(NUM_WORKERS)]
    for step in range(NUM_STEPS):
        for what, period in periods.items():
            if what != "gradients" and step % period == 0:
                average(replicas, what)
        for one in replicas:
            one.compute_gradients()
        if "gradients" in periods:
            average(replicas, "gradients")
        for one in replicas:
            one.apply(0.0)
    if "gradients" not in periods:
        average(replicas, "parameters")
    return values(replicas[0])


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def budget() -> int:
    return NUM_WORKERS * NUM_STEPS


def test_averaging_parameters_at_every_step_is_data_parallelism_for_plain_sgd() -> None:
    local = engine(local_adam(budget(), 1, moments=()), "sgd", momentum=0.0)
    parallel = engine(ddp(budget()), "sgd", momentum=0.0)
    assert close(local[0], parallel[0])
    assert close(local[0], by_hand("sgd", {"gradients": 1}, momentum=0.0))


def test_all_periods_one_is_data_parallelism_for_sgd_with_momentum() -> None:
    expected = by_hand("sgd", {"gradients": 1})
    assert close(engine(desloc(budget(), 1, {"momentum": 1}), "sgd")[0], expected)
    assert close(engine(ddp(budget()), "sgd")[0], expected)
    assert not close(engine(desloc(budget(), 1, {}), "sgd")[0] + 1e-3, expected), "the comparison can fail"


def test_all_periods_one_is_not_data_parallelism_for_adam_by_the_mean_of_squares() -> None:
    every_step = {"parameters": 1, "first_moment": 1, "second_moment": 1}
    ours = engine(local_adam(budget(), 1), "adam")[0]
    parallel = engine(ddp(budget()), "adam")[0]
    assert close(ours, by_hand("adam", every_step))
    assert close(parallel, by_hand("adam", {"gradients": 1}))
    assert not torch.allclose(ours, parallel, rtol=1e-2, atol=1e-2)
    # The second moment is what differs: it averages squares, and a mean of squares is at least the square of the mean.
    squares, square = second_moments()
    assert bool((squares >= square - 1e-9).all()) and not torch.allclose(squares, square, rtol=0.1)


def second_moments() -> tuple[torch.Tensor, torch.Tensor]:
    """After one step: with moments averaged, and with gradients averaged."""
    replicas = [learner(number, "adam") for number in range(NUM_WORKERS)]
    for one in replicas:
        one.run(1, lambda step: 0.0)
    average(replicas, "second_moment")
    parallel = [learner(number, "adam") for number in range(NUM_WORKERS)]
    for one in parallel:
        one.compute_gradients()
    average(parallel, "gradients")
    parallel[0].apply(0.0)
    one, other = (list(pair[0].moments["second_moment"].values()) for pair in (replicas, parallel))
    return torch.cat(one), torch.cat(other)


def test_equal_periods_are_local_adam() -> None:
    periods = dict.fromkeys(["parameters", "first_moment", "second_moment"], 6)
    assert close(engine(local_adam(budget(), 6), "adam")[0], by_hand("adam", periods))


def test_each_state_at_its_own_period() -> None:
    config = desloc(budget(), 2, {"first_moment": 6, "second_moment": 8})
    expected = by_hand("adam", {"parameters": 2, "first_moment": 6, "second_moment": 8})
    ours = engine(config, "adam")[0]
    assert close(ours, expected)
    others = by_hand("adam", {"parameters": 2, "first_moment": 2, "second_moment": 2})
    assert not close(ours, others), "the periods must matter"


def test_default_periods_are_one_to_three_to_six() -> None:
    assert desloc(1, 32).cadence.periods == {"parameters": 32, "first_moment": 96, "second_moment": 192}


def test_no_moments_and_outer_nesterov_is_diloco() -> None:
    rule = Nesterov(learning_rate=0.7, momentum=0.9)
    replicas = [learner(number, "adam") for number in range(NUM_WORKERS)]
    agreed = values(replicas[0])
    velocity = torch.zeros_like(agreed)
    for _ in range(NUM_STEPS // 6):
        for one in replicas:
            one.run(6, lambda step: 0.0)
        delta = agreed - torch.stack([values(one) for one in replicas]).mean(0)
        velocity = 0.9 * velocity + delta
        agreed = agreed - 0.7 * (delta + 0.9 * velocity)
        for one in replicas:
            with torch.no_grad():
                torch.nn.utils.vector_to_parameters(agreed.clone(), one.parameters.values())
    ours = engine(diloco(budget(), 6, outer=rule), "adam")
    assert close(ours[0], agreed)
    assert all(torch.equal(ours[0], other) for other in ours)


def test_a_late_average_is_applied_to_what_was_learned_meanwhile() -> None:
    """Overlap: x = g + (x - x_s), s = s + beta^k (mean - s_s); here each average is one step late."""
    decays = {"first_moment": 0.9, "second_moment": 0.95}
    config = desloc(budget(), 6, {"first_moment": 6, "second_moment": 6}, is_overlapped=True, moment_decays=decays)
    replicas = [learner(number, "adam") for number in range(NUM_WORKERS)]
    agreed = values(replicas[0])
    for number in range(NUM_STEPS // 6):
        for one in replicas:
            one.run(6 if not number else 5, lambda step: 0.0)
        then = [values(one) for one in replicas]
        moments_then = [{name: copy_of(one.moments[name]) for name in decays} for one in replicas]
        agreed = torch.stack(then).mean(0)
        if number == NUM_STEPS // 6 - 1:
            break  # steps after the last snapshot are forgotten
        for one, before, moments_before in zip(replicas, then, moments_then, strict=True):
            one.run(1, lambda step: 0.0)
            with torch.no_grad():
                now = agreed + values(one) - before
                torch.nn.utils.vector_to_parameters(now, one.parameters.values())
                for name, decay in decays.items():
                    mean = torch.stack([moments[name] for moments in moments_then]).mean(0)
                    late = copy_of(one.moments[name]) + decay * (mean - moments_before[name])
                    torch.nn.utils.vector_to_parameters(late, one.moments[name].values())
    assert close(engine(config, "adam")[0], agreed)


def copy_of(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([one.reshape(-1) for one in tensors.values()]).clone()


def test_steps_by_speed_are_those_of_the_published_cluster() -> None:
    speeds = [0.232, 0.907, 0.828, 0.347, 0.574, 0.531, 0.722, 0.194, 0.852, 0.132, 0.896, 0.107, 0.827, 0.515, 0.527]
    speeds.append(0.788)
    of_32 = [9, 32, 30, 13, 21, 19, 26, 7, 31, 5, 32, 4, 30, 19, 19, 28]
    of_8 = [3, 8, 8, 4, 6, 5, 7, 2, 8, 2, 8, 1, 8, 5, 5, 7]
    assert [scaled_steps(32, speed, 0.907) for speed in speeds] == of_32
    assert [scaled_steps(8, speed, 0.907) for speed in speeds] == of_8


def test_shared_coins_fall_alike_and_as_often_as_they_should() -> None:
    one, other = (Cadence(periods={"parameters": 8, "first_moment": 32}, coin="run") for _ in range(2))
    assert [one.due(step) for step in range(500)] == [other.due(step) for step in range(500)]
    falls = sum("parameters" in one.due(step) for step in range(20_000))
    assert 0.9 * 2500 < falls < 1.1 * 2500
    steps = [step for step in range(1, 300) if one.due(step)]
    walked = [0]
    while len(walked) <= len(steps):
        walked.append(one.next_due(walked[-1]))
    assert walked[1:] == steps[: len(walked) - 1] + walked[len(steps) + 1 :]


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_lossy_codecs_reach_the_same_place_only_nearly(codec: str) -> None:
    """Negative control: the codec is at work, replicas are nevertheless equal to the bit."""
    exact = engine(diloco(budget(), 6), "adam")
    ours = engine(diloco(budget(), 6, codec=codec, site_codec=codec), "adam")
    assert all(torch.equal(ours[0], other) for other in ours)
    error = float((ours[0] - exact[0]).norm() / exact[0].norm())
    assert 1e-6 < error < 0.1


def test_a_probabilistic_run_ends_with_equal_replicas() -> None:
    ours = engine(desloc(budget(), 4, is_probabilistic=True), "adam")
    assert all(torch.equal(ours[0], other) for other in ours)


def test_sites_that_are_everybody_average_like_everybody() -> None:
    """All workers are at one site: averaging it every 2 steps is averaging all every 2 steps."""
    ours = engine(local_adam(budget(), 6, moments=(), site_parameters_every=2), "adam")[0]
    assert close(ours, by_hand("adam", {"parameters": 2}))
    assert not close(ours, by_hand("adam", {"parameters": 6})), "the sites must matter"


def test_each_fragment_is_averaged_in_its_turn() -> None:
    config = local_adam(budget(), 6, moments=(), num_fragments=2)
    bounds = list(config.fragment_bounds(300).values())
    assert bounds == [(0, 128), (128, 300)]
    replicas = [learner(number, "adam") for number in range(NUM_WORKERS)]
    for step in range(NUM_STEPS):
        for number, (first, last) in enumerate(bounds):
            if step and step % 6 == 3 * number:
                mean = torch.stack([values(one) for one in replicas]).mean(0)
                for one in replicas:
                    own = values(one)
                    own[first:last] = mean[first:last]
                    with torch.no_grad():
                        torch.nn.utils.vector_to_parameters(own.clone(), one.parameters.values())
        for one in replicas:
            one.run(1, lambda step: 0.0)
    average(replicas, "parameters")
    assert close(engine(config, "adam")[0], values(replicas[0]))
