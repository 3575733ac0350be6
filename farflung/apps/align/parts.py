"""The seats of an alignment run at work: the trainer with its hub, and rollout workers."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Sequence

from farflung.apps.align.chain import Chain, RunningLoop, stage_blocks
from farflung.apps.align.evaluated import EVALUATED_PASS_RATE, EVALUATED_REWARD, EVALUATED_VERSION
from farflung.apps.align.materials import Materials
from farflung.apps.align.run_file import RunFile
from farflung.apps.align.stages import stages_of
from farflung.apps.capacity import choose_device
from farflung.apps.runs.messages import SeatReport
from farflung.apps.runs.part import Sitting, Stopped, sent_bytes
from farflung.learn.parameters import Tensors
from farflung.model.source import ModelSource
from farflung.systems.alignment.charges import Charges
from farflung.systems.alignment.messages import AlignChunk
from farflung.systems.alignment.policy import SamplingPolicy
from farflung.systems.alignment.rollouts import Group
from farflung.systems.alignment.trainer import StepReport, Trainer
from farflung.systems.alignment.worker import Worker
from farflung.world.address import PeerId
from farflung.world.nursery import open_nursery

SHOWN_METRICS = (
    *("reward", "mismatch", "sample_size_share", "gradient_norm", "drift", "surprise", "num_groups_equal"),
    *(EVALUATED_REWARD, EVALUATED_PASS_RATE, EVALUATED_VERSION),
)

ALARM_LETTERS = 20
"""The beginning that alarms of one kind have in common."""


def run_identity(materials: Materials) -> bytes:
    """What hub and workers compare before they work together."""
    return hashlib.sha256(materials.fingerprint.encode()).digest()


def passed_share(groups: tuple[Group, ...], passing_reward: float) -> float:
    """Of the answers of a batch."""
    rewards = [reward for group in groups for reward in group.rewards]
    return sum(reward >= passing_reward for reward in rewards) / len(rewards)


class StepLog:
    """What the newest step came to, as values and sentences for the run's log."""

    def __init__(self, materials: Materials) -> None:
        self.num_steps = 0
        """Of this life."""
        self.values: dict[str, float] = {}
        self.sentences: list[str] = []
        self.staleness: Counter[int] = Counter()
        self.waited_seconds: Counter[str] = Counter()
        self._materials = materials
        self._alarms: list[str] = []
        self._loss: float | None = None

    def add(self, step: StepReport, alarms: Sequence[str] = ()) -> None:
        """Take a step, and what is wrong with it; of an alarm that goes on only the first is told."""
        self.num_steps += 1
        self.staleness.update(step.staleness)
        self.waited_seconds.update(step.idle_seconds)
        self._loss = step.metrics.get("loss")
        passing = self._materials.run.training.passing_reward
        self.values = {
            "step": float(step.version),
            "pass_rate": passed_share(step.groups, passing),
            **{name: step.metrics[name] for name in SHOWN_METRICS if name in step.metrics},
            **{f"waited_for_{word}": seconds for word, seconds in self.waited_seconds.items()},
        }
        if step.num_weights_bytes:
            self.values["bytes_per_sync"] = float(step.num_weights_bytes)
        kinds = [alarm[:ALARM_LETTERS] for alarm in alarms]
        new = [f"alarm: {alarm}" for alarm, kind in zip(alarms, kinds, strict=True) if kind not in self._alarms]
        self._alarms = kinds
        self.sentences = [*(one for one in self.sentences if one.startswith("alarm: ")), *new, self._shown(step)]

    def _shown(self, step: StepReport) -> str:
        """An answer of the batch in words."""
        group = step.groups[step.version % len(step.groups)]
        rollout, reward = group.rollouts[0], group.rewards[0]
        prompt = self._materials.tokenizer.decode(list(rollout.prompt_tokens))
        answer = self._materials.tokenizer.decode(list(rollout.answer_tokens))
        return f"step {step.version}: {prompt!r} was answered with {answer!r}, worth {reward:g}"

    def told(self) -> dict[str, object]:
        """For a seat's report; a loss and a sentence are told once."""
        loss, sentences = self._loss, tuple(self.sentences)
        self._loss, self.sentences = None, []
        count = sum(self.staleness.values())
        stale = sum(lag * number for lag, number in self.staleness.items()) / count if count else None
        return {"loss": loss, "decisions": sentences, "staleness": stale, "values": dict(self.values)}


class TrainerPart:
    """Trains what workers send, until the run is stopped: the hub tells them when it is over."""

    def __init__(self, sitting: Sitting[RunFile], materials: Materials) -> None:
        self._sitting = sitting
        self._stopped = Stopped()
        self._log = StepLog(materials)
        self._told_banned: set[str] = set()
        self._learner = materials.learner()
        self._trainer = Trainer(
            sitting.world,
            sitting.run.conversation,
            self._learner,
            materials.environment(),
            run=run_identity(materials),
            auditor=materials.auditor(),
            report=lambda step: self._log.add(step, self._learner.alarms),
            charges=Charges(step_seconds=sitting.run.simulation.step_seconds),
        )

    async def run(self) -> None:
        async with open_nursery() as nursery:
            training = nursery.start(self._trainer.run(), name="trainer")
            await self._stopped.wait()
            training.cancel()  # what it has done lies in its journal

    def stop(self) -> None:
        self._stopped.set()

    def report(self) -> SeatReport:
        ledger, chunk = self._trainer.ledger.state, AlignChunk.__name__
        for name in [name for name in ledger.banned if name not in self._told_banned]:
            self._told_banned.add(name)
            self._log.sentences.append(f"{name} is banned: {ledger.banned[name]}")
        counters = {
            "steps": ledger.version,
            "trained": ledger.num_trained,
            "stale": ledger.num_stale,
            "given_up": len(ledger.given_up),
            "banned": len(ledger.banned),
            "weights_bytes": self._sitting.world.traffic.total(kind=chunk, sent=True),
            **{f"staleness/{lag}": count for lag, count in sorted(ledger.staleness.items())},
        }
        return SeatReport(
            seat=self._sitting.seat.index,
            num_steps=self._log.num_steps,
            waiting_seconds=sum(self._log.waited_seconds.values()),
            sent=sent_bytes(self._sitting.world),
            counters=counters,
            **self._log.told(),  # pyright: ignore[reportArgumentType]
        )

    def result(self) -> Tensors | None:
        return self._learner.snapshot() if self._trainer.ledger.is_over else None

    def close(self) -> None:
        self._trainer.close()


def _policy(sitting: Sitting[RunFile], materials: Materials) -> SamplingPolicy:
    """Of a worker: its own model, or one whose blocks are on the servers behind it."""
    peers = [sitting.peers[stage.index] for stage in stages_of(sitting.seat, sitting.seats)]
    if not peers:
        return materials.policy()
    source = ModelSource.open(materials.path)
    blocks = stage_blocks(source.num_blocks, len(peers))
    stages = dict(zip(peers, blocks, strict=True))
    device = choose_device(sitting.run.model.device)
    return materials.policy(Chain.connect(source, sitting.world, RunningLoop(), stages, str(device)))


class WorkerPart:
    """Samples until the hub says that the run is over."""

    def __init__(self, sitting: Sitting[RunFile], materials: Materials, hub: PeerId) -> None:
        self._sitting = sitting
        self._ended = asyncio.Event()
        run = sitting.run
        self._worker = Worker(
            sitting.world,
            run.conversation,
            _policy(sitting, materials),
            name=sitting.seat.name,
            hub=hub,
            run=run_identity(materials),
            num_answers_max=run.training.prompts_per_step * run.training.answers_per_prompt,
            charges=Charges(token_seconds=run.simulation.token_seconds),
        )

    async def run(self) -> None:
        async def work() -> None:
            await self._worker.run()
            self._ended.set()

        async with open_nursery() as nursery:
            working = nursery.start(work(), name="worker")
            await self._ended.wait()
            working.cancel()

    def stop(self) -> None:
        self._ended.set()  # what is finished lies in its outbox

    def report(self) -> SeatReport:
        report, weights = self._worker.report, self._worker.weights
        values = {f"waited_for_{word}": seconds for word, seconds in report.idle_seconds.items()}
        values["version"] = float(weights.held.number)
        values["answers_per_second"] = self._worker.answers_per_second
        return SeatReport(
            seat=self._sitting.seat.index,
            num_tokens=report.num_tokens,
            values=values,
            waiting_seconds=sum(report.idle_seconds.values()),
            sent=sent_bytes(self._sitting.world),
            counters={
                "sampled": report.num_sampled,
                "taken": report.num_taken,
                "refused": report.num_refused,
                "versions": weights.num_versions,
                "weights_bytes": weights.num_bytes,
                "weights_bytes_from_peers": weights.num_bytes_from_peers,
            },
        )

    def result(self) -> None:
        return None

    def close(self) -> None:
        self._ended.set()
