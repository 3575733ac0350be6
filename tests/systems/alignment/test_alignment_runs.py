"""Whole runs in the simulator: Sequential is exact, asynchronous ones stay within their bound."""

import asyncio

import pytest
import torch

from farflung.sim.topology import Link, Topology
from farflung.systems.alignment.config import AlignmentConfig, PublishConfig
from farflung.systems.alignment.rollouts import Group, Rollout, Task
from tests.alignments import SimulatedAlignment
from tests.tables import Kinds, TableLearner, TablePolicy

SETTINGS = {"num_steps": 6, "prompts_per_step": 4, "answers_per_prompt": 4, "num_tokens_max": 5, "silence_seconds": 3.0}


def config(**changes: object) -> AlignmentConfig:
    return AlignmentConfig(**{**SETTINGS, **changes})


def in_one_place(settings: AlignmentConfig) -> TableLearner:
    """Sampling and training by turns, without anything between them."""
    learner, policy, environment = TableLearner(), TablePolicy(), Kinds()
    for step in range(settings.num_steps):
        policy.install(step, b"", learner.snapshot())
        groups: list[Group] = []
        for prompt in range(step * settings.prompts_per_step, (step + 1) * settings.prompts_per_step):
            members = tuple(range(settings.answers_per_prompt))
            policy.begin(Task(prompt, members, environment.prompt(prompt), settings.seed, settings.num_tokens_max))
            found: list[Rollout] = []
            while len(found) < len(members):
                found += policy.advance(1)
            rollouts = tuple(sorted(found, key=lambda rollout: rollout.member))
            groups.append(Group(prompt, rollouts, tuple(environment.reward(rollout) for rollout in rollouts)))
        learner.step(groups)
    return learner


@pytest.mark.parametrize("workers", [{"w0": 1.0}, {"w0": 1.0, "w1": 1.7, "w2": 5.0}])
def test_sequential_is_training_in_one_place_to_the_bit(workers: dict[str, float]) -> None:
    settings = config(staleness_max=0)
    with SimulatedAlignment(settings, workers) as run:
        run.run()
        assert run.errors == {}
        assert torch.equal(run.table, in_one_place(settings).table)
        assert run.trainer.ledger.state.staleness == {0: 6 * 4 * 4}


def test_asynchronous_stays_within_its_bound_and_is_faster() -> None:
    seconds: dict[int, float] = {}
    for bound in (0, 1, 3):
        with SimulatedAlignment(config(staleness_max=bound, num_steps=12), {"w0": 1.0, "w1": 2.0}) as run:
            run.run()
            assert run.errors == {}
            ledger = run.trainer.ledger.state
            assert max(ledger.staleness) <= bound and ledger.num_trained == 12 * 16
            assert sum(report.num_taken for report in run.reports.values()) == ledger.num_trained + ledger.num_stale
            rewards = [step.metrics["reward"] for step in run.steps]
            assert sum(rewards[-3:]) > sum(rewards[:3]) + 0.1
            seconds[bound] = run.simulation.now()
    assert seconds[1] < 0.75 * seconds[0] and seconds[3] <= seconds[1]


def test_weights_are_published_when_drift_times_what_waits_is_too_much() -> None:
    counts: dict[float, int] = {}
    for budget in (1e-9, 1e9):
        publish = PublishConfig(steps_per_version=4, drift_budget=budget)
        with SimulatedAlignment(config(staleness_max=3, num_steps=12, publish=publish), {"w0": 1.0}) as run:
            run.run()
            assert run.errors == {}
            counts[budget] = sum(step.num_weights_bytes > 0 for step in run.steps)
    assert counts[1e-9] > 2 * counts[1e9]


class Partly(Kinds):
    """Cannot make prompt 5, and cannot judge prompt 2."""

    def prompt(self, number: int) -> tuple[int, ...]:
        if number == 5:
            raise ValueError("problem 5 is not there")
        return super().prompt(number)

    def reward(self, rollout: Rollout) -> float:
        if rollout.prompt == 2:
            raise ZeroDivisionError("nobody can judge that")
        return super().reward(rollout)


def test_prompts_that_cannot_be_made_or_judged_are_named_and_the_run_goes_on() -> None:
    with SimulatedAlignment(config(), {"w0": 1.0}, environment=Partly()) as run:
        run.run()
        assert run.errors == {}
        ledger = run.trainer.ledger.state
        assert sorted(ledger.given_up) == [2, 5] and ledger.num_trained == 6 * 16
        notes = " ".join(str(event) for event in run.simulation.trace.of("note"))
        assert "prompt 5 is given up: problem 5 is not there" in notes
        assert "prompt 2 is given up: its reward failed with ZeroDivisionError: nobody can judge that" in notes


def test_a_worker_of_another_run_is_refused_in_a_sentence() -> None:
    with SimulatedAlignment(config(), {"w0": 1.0}) as run:
        run.run_of["stranger"] = b"another run"
        run.add_worker("stranger")
        run.run()
        assert "other settings or tokens than this run" in str(run.errors["stranger"])
        assert run.trainer.ledger.state.version == 6


def answers_per_second(workers: dict[str, float], sites: dict[str, str], topology: Topology) -> float:
    """Of a whole run, whose trainer is never what is waited for."""
    settings = config(staleness_max=4, num_steps=20, prompts_per_step=8)
    with SimulatedAlignment(
        settings, workers, sites=sites, topology=topology, seconds_per_token=0.02, seconds_per_step=0.01
    ) as run:
        run.run()
        assert run.errors == {}
        return run.trainer.ledger.state.num_trained / run.simulation.now()


def test_uneven_workers_together_are_as_fast_as_the_sum_of_what_each_can_do() -> None:
    sites = {"far": "far"}
    topology = Topology().link("hub", "far", Link(latency_seconds=0.05, bytes_per_second=5e6 / 8))
    workers = {"near": 1.0, "slow": 5.0, "far": 1.0}
    alone = sum(answers_per_second({name: workers[name]}, sites, topology) for name in workers)
    assert answers_per_second(workers, sites, topology) >= 0.85 * alone


def test_far_workers_are_given_their_whole_part_at_once() -> None:
    """Sequential with a second each way: news, two questions about weights, tasks, answers; no trip for every half."""
    sites = {"w0": "far", "w1": "farther"}
    topology = Topology(between=Link(latency_seconds=1.0))
    settings = config(staleness_max=0, num_steps=10, prompts_per_step=8, silence_seconds=25.0)
    with SimulatedAlignment(
        settings, dict.fromkeys(sites, 1.0), sites=sites, topology=topology, num_answers_max=32
    ) as run:
        run.run()
        assert run.errors == {}
        assert torch.equal(run.table, in_one_place(settings).table)
        assert run.simulation.now() / settings.num_steps < 11


def test_a_worker_whose_trainer_is_down_does_not_send_without_end() -> None:
    with SimulatedAlignment(config(num_steps=20), {"w0": 1.0}, seconds_per_token=0.05) as run:

        async def story() -> None:
            await asyncio.sleep(3.0)
            run.simulation.crash("trainer")
            await asyncio.sleep(10.0)
            run.simulation.restart("trainer")
            while not run.is_done:  # noqa: ASYNC110 (it comes and goes)
                await asyncio.sleep(0.25)

        run.simulation.run(story(), deadline=1_000.0)
        sent = [event for event in run.simulation.trace.of("send", "w0") if "AlignDone" in str(event)]
        assert any(3.0 < event.time < 13.0 for event in sent)
        assert sum(3.0 < event.time < 13.0 for event in sent) < 60
        assert run.trainer.ledger.state.num_trained == 20 * 16
