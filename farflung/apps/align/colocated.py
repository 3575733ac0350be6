"""`--mode colocated`: one seat samples and trains by turns, as a run with rollout workers is compared with."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from farflung.apps.align.materials import Materials
from farflung.apps.align.parts import StepLog
from farflung.apps.align.run_file import RunFile
from farflung.apps.runs.messages import SeatReport
from farflung.apps.runs.part import Sitting
from farflung.learn.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from farflung.learn.parameters import Tensors
from farflung.systems.alignment.colocated import install, sample
from farflung.systems.alignment.rollouts import Group
from farflung.systems.alignment.trainer import StepReport
from farflung.world.doors import Failed

FOLDER = "colocated"


class ColocatedPart:
    """Steps one after the other, each on the compute door; goes on from its newest checkpoint."""

    def __init__(self, sitting: Sitting[RunFile], materials: Materials) -> None:
        self._sitting = sitting
        self._config = sitting.run.conversation
        self._log = StepLog(materials)
        self._policy = materials.policy()
        self._learner = materials.learner()
        self._environment = materials.environment()
        self._is_stopped = False
        self._num_tokens = 0
        self._folder = None if sitting.folder is None else sitting.folder / FOLDER
        if self._folder is not None and checkpoints(self._folder):
            saved = load_checkpoint(self._folder)
            self._learner.restore(saved.tensors, saved.state)

    async def run(self) -> None:
        while self._learner.version < self._config.num_steps and not self._is_stopped:
            groups, metrics = await self._compute()
            step = self._learner.version
            self._num_tokens += sum(len(one.answer_tokens) for group in groups for one in group.rollouts)
            self._log.add(
                StepReport(step, metrics, tuple(groups), {0: sum(len(one.rollouts) for one in groups)}, {}, 0),
                self._learner.alarms,
            )
            if step % self._config.steps_per_checkpoint == 0 or step == self._config.num_steps:
                self._save()
        self._save()

    async def _compute(self) -> Any:
        done: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        settings, config = self._sitting.run.simulation, self._config
        num_tokens = config.prompts_per_step * config.answers_per_prompt * config.num_tokens_max
        seconds = settings.step_seconds + num_tokens * settings.token_seconds
        self._sitting.world.compute.submit(done.set_result, self._step, seconds=seconds)
        result = await done
        if isinstance(result, Failed):
            raise result.error
        return result

    def _step(self) -> tuple[Sequence[Group], Mapping[str, float]]:
        """Runs on the compute door."""
        number = self._learner.version
        install(self._policy, number, self._learner.snapshot())
        first = number * self._config.prompts_per_step
        groups = sample(
            self._policy, self._environment, range(first, first + self._config.prompts_per_step), self._config
        )
        return groups, self._learner.step(groups)

    def _save(self) -> None:
        if self._folder is not None:
            save_checkpoint(self._folder, *self._learner.state(), num_kept=1)

    def stop(self) -> None:
        self._is_stopped = True

    def report(self) -> SeatReport:
        return SeatReport(
            seat=self._sitting.seat.index,
            num_steps=self._log.num_steps,
            num_tokens=self._num_tokens,
            counters={"steps": self._learner.version},
            **self._log.told(),  # pyright: ignore[reportArgumentType]
        )

    def result(self) -> Tensors | None:
        return self._learner.snapshot() if self._learner.version >= self._config.num_steps else None

    def close(self) -> None:
        self._is_stopped = True
