"""Loops of one's own, in real processes over real sockets: they agree, and do what the papers' equations say."""

import json
import subprocess
import time
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.apps.training_site import Settings, arguments, loss_of, make_model, make_optimizer

pytestmark = pytest.mark.loopback

Found = list[dict[str, Any]]
NUM_STEPS = 12
ROOT = Path(__file__).parents[2]


def run_sites(
    folder: Path, sites: Sequence[Settings], seconds_max: float = 500.0, *, waited: Container[int] | None = None
) -> Found:
    """What the first ranks of the sites found, once all that are waited for have ended."""
    ranks = [(site, rank) for site in sites for rank in range(site.num_ranks)]
    processes = [subprocess.Popen(arguments(site, rank), cwd=ROOT) for site, rank in ranks]
    deadline = time.monotonic() + seconds_max
    try:
        for (site, _), process in zip(ranks, processes, strict=True):
            if waited is None or site.number in waited:
                process.wait(max(0.1, deadline - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    files = [folder / f"site-{site.number}-0.json" for site in sites]
    return [json.loads(file.read_text()) if file.exists() else {} for file in files]


def site(folder: Path, number: int, policy: str, optimizer: str = "adamw", **settings: Any) -> Settings:
    """A site of these tests."""
    own: dict[str, Any] = {"num_steps": NUM_STEPS, **settings}
    return Settings(folder=str(folder), number=number, policy=policy, optimizer=optimizer, **own)


def assert_equal_values(found: Sequence[Any], expected: Sequence[torch.Tensor], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensor(one), other.detach(), rtol=0, atol=tolerance)


class Reference:
    """Two replicas in one process, averaged by hand: the equations, without the engine."""

    def __init__(self, optimizer: str) -> None:
        self.models = [make_model(0), make_model(0)]
        self.optimizers = [make_optimizer(optimizer, model.parameters()) for model in self.models]

    def train(self, average_after: Callable[["Reference", int], None]) -> None:
        for step in range(NUM_STEPS):
            for number, (model, optimizer) in enumerate(zip(self.models, self.optimizers, strict=True)):
                loss_of(model, number, step).backward()
                optimizer.step()
                optimizer.zero_grad()
            average_after(self, step + 1)

    def parameters(self) -> list[list[torch.Tensor]]:
        return [[one.data for one in pair] for pair in zip(*(model.parameters() for model in self.models), strict=True)]

    def moments(self, key: str) -> list[list[torch.Tensor]]:
        states = [optimizer.state for optimizer in self.optimizers]
        pairs = zip(*(model.parameters() for model in self.models), strict=True)
        return [[state[one][key] for state, one in zip(states, pair, strict=True)] for pair in pairs]


def average(pairs: list[list[torch.Tensor]]) -> None:
    for one, other in pairs:
        mean = (one + other) / 2
        one.copy_(mean)
        other.copy_(mean)


@pytest.mark.parametrize(
    ("optimizer", "is_equal"),
    [
        ("sgd", True),
        pytest.param("momentum", True, marks=pytest.mark.slow),
        pytest.param("adamw", False, marks=pytest.mark.slow),
    ],
)
def test_averages_at_every_step_are_joint_batches_except_for_adam(
    tmp_path: Path, optimizer: str, is_equal: bool
) -> None:
    settings: dict[str, Any] = {"policy_settings": {"parameters_every": 1}}
    sites = [site(tmp_path, number, "LocalAdam", optimizer, **settings) for number in (0, 1)]
    first, second = run_sites(tmp_path, sites)
    assert first["parameters"] == second["parameters"]
    assert first["num_rounds"] == NUM_STEPS
    joint = parameters_after_joint_batches(optimizer)
    if is_equal:
        assert_equal_values(first["parameters"], joint, 1e-5)
    else:
        # The mean of squares is not the square of the mean.
        distance = max(
            float((torch.tensor(one) - p).abs().max()) for one, p in zip(first["parameters"], joint, strict=True)
        )
        assert 1e-3 < distance < 1.0


def parameters_after_joint_batches(name: str) -> list[torch.Tensor]:
    """Synchronous data parallelism over the two sites' batches."""
    model = make_model(0)
    optimizer = make_optimizer(name, model.parameters())
    for step in range(NUM_STEPS):
        ((loss_of(model, 0, step) + loss_of(model, 1, step)) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach() for parameter in model.parameters()]


def test_des_loc_averages_each_state_at_its_own_period(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"policy_settings": {"parameters_every": 2}}
    found = run_sites(tmp_path, [site(tmp_path, number, "DesLoc", **settings) for number in (0, 1)])
    assert found[0]["parameters"] == found[1]["parameters"]
    assert found[0]["losses"] != found[1]["losses"], "each has data of its own"
    assert_des_loc(found)


@pytest.mark.slow
def test_a_site_with_other_values_takes_over_those_of_the_run(tmp_path: Path) -> None:
    """It gets them when the lead comes to its first average, and so is three steps ahead in counting."""
    settings: dict[str, Any] = {"policy_settings": {"parameters_every": 3}}
    sites = [
        site(tmp_path, 0, "LocalAdam", **settings),
        site(tmp_path, 1, "LocalAdam", seed=1, num_steps=NUM_STEPS + 3, **settings),
    ]
    first, second = run_sites(tmp_path, sites)
    assert first["parameters"] == second["parameters"]
    assert len(second["losses"]) == NUM_STEPS
    assert abs(second["losses"][0] - loss_of(make_model(0), 1, 3).item()) < 1e-6


def assert_des_loc(sites: Found) -> None:
    """The sites are what DES-LOC with periods of 2, 6 and 12 makes of the two replicas."""

    def average_after(reference: Reference, num_steps: int) -> None:
        for pairs, period in (
            (reference.parameters(), 2),
            (reference.moments("exp_avg"), 6),
            (reference.moments("exp_avg_sq"), 12),
        ):
            if num_steps % period == 0:
                average(pairs)

    reference = Reference("adamw")
    reference.train(average_after)
    for number, found in enumerate(sites):
        assert_equal_values(found["parameters"], [pair[number] for pair in reference.parameters()], 1e-5)
        for key in ("exp_avg", "exp_avg_sq"):
            expected = [pair[number] for pair in reference.moments(key)]
            assert_equal_values([moment[key] for moment in found["moments"]], expected, 1e-5)


def test_before_the_update_means_gradients_of_the_values_before(tmp_path: Path) -> None:
    """x(t+1) = mean(x(t)) - lr g(x(t)): DES-LOC's listing to the letter, and one more average at the end."""
    settings: dict[str, Any] = {"policy_settings": {"parameters_every": 1, "average_before": "update"}}
    found = run_sites(tmp_path, [site(tmp_path, number, "LocalAdam", "sgd", **settings) for number in (0, 1)])
    assert found[0]["parameters"] == found[1]["parameters"]
    reference = Reference("sgd")
    for step in range(NUM_STEPS):
        for number, model in enumerate(reference.models):
            loss_of(model, number, step).backward()
        if step > 0:
            average(reference.parameters())
        for optimizer in reference.optimizers:
            optimizer.step()
            optimizer.zero_grad()
    average(reference.parameters())
    assert_equal_values(found[0]["parameters"], [pair[0] for pair in reference.parameters()], 1e-5)


@pytest.mark.parametrize("wrapper", ["fsdp", pytest.param("ddp", marks=pytest.mark.slow)])
def test_a_site_of_two_ranks_trains_with_a_site_of_one(tmp_path: Path, wrapper: str) -> None:
    settings: dict[str, Any] = {"policy_settings": {"parameters_every": 2}}
    sites = [
        site(tmp_path, 0, "DesLoc", num_ranks=2, wrapper=wrapper, **settings),
        site(tmp_path, 1, "DesLoc", **settings),
    ]
    found = run_sites(tmp_path, sites)
    assert found[0]["parameters"] == found[1]["parameters"]
    assert_des_loc(found)


@pytest.mark.parametrize("codec", ["raw", pytest.param("int4", marks=pytest.mark.slow)])
def test_diloco_is_an_outer_nesterov_step_and_codecs_lose_what_they_say(tmp_path: Path, codec: str) -> None:
    settings: dict[str, Any] = {"policy_settings": {"parameters_every": 4, "codec": codec}}
    first, second = run_sites(tmp_path, [site(tmp_path, number, "DiLoCo", **settings) for number in (0, 1)])
    assert first["parameters"] == second["parameters"]
    agreed = [parameter.detach().clone().requires_grad_() for parameter in make_model(0).parameters()]
    outer = torch.optim.SGD(agreed, lr=0.7, momentum=0.9, nesterov=True)

    def average_after(reference: Reference, num_steps: int) -> None:
        if num_steps % 4 == 0:
            for parameter, pair in zip(agreed, reference.parameters(), strict=True):
                parameter.grad = parameter.detach() - sum(pair) / len(pair)
            outer.step()
            for parameter, pair in zip(agreed, reference.parameters(), strict=True):
                for one in pair:
                    one.copy_(parameter.detach())

    reference = Reference("adamw")
    reference.train(average_after)
    if codec == "raw":
        assert_equal_values(first["parameters"], agreed, 1e-5)
    else:
        distances = [
            float((torch.tensor(one) - p.detach()).abs().max())
            for one, p in zip(first["parameters"], agreed, strict=True)
        ]
        assert 1e-4 < max(distances) < 0.2


def test_another_model_is_refused(tmp_path: Path) -> None:
    sites = [site(tmp_path, 0, "DesLoc"), site(tmp_path, 1, "DesLoc", num_hidden=9)]
    _, second = run_sites(tmp_path, sites, waited={1})  # the other would wait on
    assert second["error"].startswith("ValueError: run 'training' trains another model or optimizer (73 values in 4")
    assert "there, 93 values in 4 tensors here)" in second["error"]


def test_who_stays_alone_is_told(tmp_path: Path) -> None:
    (alone,) = run_sites(tmp_path, [site(tmp_path, 0, "DesLoc", wait_seconds_max=1.0)])
    assert alone["error"].startswith("NobodyThere: after 1 s 1 of at least 2 sites train run 'training'")


@pytest.mark.slow
def test_who_dies_costs_the_others_no_more_than_a_wait(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"policy_settings": {"parameters_every": 2}, "step_seconds": 0.05, "num_steps": 16}
    sites = [site(tmp_path, number, "DesLoc", **settings) for number in (0, 1)]
    sites.append(site(tmp_path, 2, "DesLoc", num_leave_after=5, **settings))
    first, second, _ = run_sites(tmp_path, sites)
    assert first["parameters"] == second["parameters"]
    assert first["num_rounds"] == 8


@pytest.mark.slow
def test_the_lead_dies_and_the_others_agree_on_another(tmp_path: Path) -> None:
    """Site 0 founded the swarm, keeps its directory and coordinates."""
    settings: dict[str, Any] = {"policy_settings": {"parameters_every": 2}, "step_seconds": 0.05, "num_steps": 16}
    sites = [site(tmp_path, number, "DesLoc", **settings) for number in (1, 2)]
    founder = site(tmp_path, 0, "DesLoc", num_leave_after=7, **settings)
    _, first, second = run_sites(tmp_path, [founder, *sites])
    assert first["parameters"] == second["parameters"]
    assert first["num_steps"] == second["num_steps"] == 16
    assert first["num_rounds"] > 4, "they averaged with each other when it was gone"


@pytest.mark.slow
def test_a_run_goes_on_from_its_checkpoints(tmp_path: Path) -> None:
    """Outer momentum and residuals are in them: two halves are the whole."""
    settings: dict[str, Any] = {"policy_settings": {"parameters_every": 3, "codec": "int4"}}
    whole, half, rest = (tmp_path / name for name in ("whole", "half", "rest"))
    for folder in (whole, half, rest):
        folder.mkdir()
    expected, _ = run_sites(whole, [site(whole, number, "DiLoCo", **settings) for number in (0, 1)])
    run_sites(
        half, [site(half, number, "DiLoCo", **{**settings, "num_steps": 6, "save_to": str(half)}) for number in (0, 1)]
    )
    found, _ = run_sites(
        rest, [site(rest, number, "DiLoCo", **{**settings, "load_from": str(half)}) for number in (0, 1)]
    )
    assert found["num_steps"] == NUM_STEPS
    assert found["parameters"] == expected["parameters"]
