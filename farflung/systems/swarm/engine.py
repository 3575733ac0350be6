"""A block server's device: it forms batches of what waits, hands out what they gave, and finds room when pages run out.

Invariants: one computation at a time; the steps of a session in their order; a session whose computation fails is
closed and nobody else's; a step that finds no room waits, or an other session gives way and is told to replay.
Standbys are computed when nobody else waits or is about to be back, a little at a time; beside that a little every two
seconds, so that they also keep up where somebody always waits, at a cost of a few hundredths.
"""

import math
from collections.abc import Sequence

from farflung.systems.swarm import stateless
from farflung.systems.swarm.accounting import Spent, Work
from farflung.systems.swarm.batch import NoRoom, Progress, Unanswered, run_batch
from farflung.systems.swarm.batching import Batch, BatchQueue
from farflung.systems.swarm.config import ServerConfig
from farflung.systems.swarm.jobs import RequestJob, StepJob, cost_seconds
from farflung.systems.swarm.kept import KeptPasses
from farflung.systems.swarm.lingering import Lingering
from farflung.systems.swarm.messages import ACTOR, Forward, Output, Step
from farflung.systems.swarm.replies import behind, onward, refuse, standing_by
from farflung.systems.swarm.sessions import ServerSession, SessionTable, make_output
from farflung.wire.tensor import WireTensor
from farflung.world.address import Address
from farflung.world.doors import Failed
from farflung.world.effects import Effect, Note, Run, Send, WakeAt

FRAME_BYTES_MAX = 1 << 30
RATE_SMOOTHING = 0.1
BATCH_TOKENS_MIN = 16
BATCH_TOKENS_MAX = 1024
STANDBY_PAUSE_SECONDS = 2.0
"""Where somebody always waits, standbys are computed so seldom."""
ROOM_SECONDS = 0.2
"""After so long a step that found no room is tried again."""


class Engine:
    """What waits for the device, what runs on it, and what is done with the results."""

    def __init__(self, config: ServerConfig, sessions: SessionTable) -> None:
        self.config = config
        self.queue = BatchQueue(config.num_jobs_max, config.batch_sessions_max)
        self.standby_queue = BatchQueue(config.num_jobs_max, config.batch_sessions_max)
        self.job_seconds: float | None = None
        """Mean seconds of recent computations."""
        self.kept = KeptPasses(config.kept_bytes_max, config.kept_seconds_max)
        self.work = Work()
        """What the device has been used for."""
        self._sessions = sessions
        self._running: Batch | RequestJob | None = None
        self._is_running_standbys = False
        self._standbys_ran_at = -math.inf
        self._started_at = 0.0
        self._lingering = Lingering(config.linger_seconds_max)

    @property
    def queue_length(self) -> int:
        """Computations that come before what would be asked now."""
        num_jobs = len(self.queue)
        num_batches = max(-(-num_jobs // self.config.batch_sessions_max), self.queue.num_tokens // BATCH_TOKENS_MAX)
        return num_batches + (self._running is not None and not self._is_running_standbys)

    def queue_of(self, session: ServerSession) -> BatchQueue:
        """Where its steps wait."""
        return self.standby_queue if session.is_standby else self.queue

    def push(self, job: StepJob | RequestJob, now: float) -> Sequence[Effect]:
        """Accept a job; the caller has seen that the queue is not full."""
        if isinstance(job, StepJob):
            self._lingering.came(job.session, now)
        queue = self.queue_of(job.session) if isinstance(job, StepJob) else self.queue
        queue.push(job)
        return self.run_next(now)

    def promote(self, session: ServerSession) -> None:
        """What waits of a standby waits like others' from now on."""
        jobs = self.standby_queue.withdraw(session)
        self._sessions.promote(session)
        for job in jobs:
            self.queue.push(job)

    def run_next(self, now: float) -> Sequence[Effect]:
        """Give the device its next batch, if it is free and nobody is waited for."""
        self.kept.drop_old(now)
        if self._running is not None:
            return ()
        begins_at = self._begins_at(now)
        standbys_at = self._standbys_at(now)
        self._is_running_standbys = standbys_at <= now
        if self._is_running_standbys:
            self._standbys_ran_at = now
            chosen = self.standby_queue.form(now, self._num_tokens_max(self.config.standby_seconds_max))
            if chosen is None:  # all of them are closed
                return self.run_next(now)
        elif begins_at <= now:
            chosen = self.queue.form(now, self._num_tokens_max(self.config.batch_seconds_max))
            begins_at = self.queue.ready_at() or math.inf
        else:
            chosen = None
        if chosen is None:
            wake_at = min(begins_at, standbys_at)
            return [WakeAt(wake_at)] if now < wake_at < math.inf else ()
        return [self._run(chosen, now)]

    def _run(self, chosen: Batch | RequestJob, now: float) -> Run:
        self._running, self._started_at = chosen, now
        if isinstance(chosen, Batch):
            _, first, last = chosen.parts[0].job.session.key
            seconds = cost_seconds(last - first, chosen.num_tokens, self.config)
            return Run(chosen, run_batch, (chosen.parts, FRAME_BYTES_MAX), seconds)
        request, arguments = chosen.request, (chosen.span, chosen.request, FRAME_BYTES_MAX, chosen.additions)
        seconds = cost_seconds(request.last - request.first, chosen.num_tokens_left, self.config)
        if isinstance(request, Forward):
            return Run(chosen, stateless.forward, arguments, seconds)
        kept = self.kept.take(chosen.client, request)
        # Weights have no gradients here, so back takes as long as forth; what is not kept goes forth again first.
        return Run(chosen, stateless.backward, (*arguments, kept), seconds if kept is not None else 2 * seconds)

    def _standbys_at(self, now: float) -> float:
        """When standbys have their turn next."""
        if not len(self.standby_queue):
            return math.inf
        turn_at = self._standbys_ran_at + STANDBY_PAUSE_SECONDS
        if len(self.queue):
            return turn_at
        return min(turn_at, self._lingering.all_back_at(now))

    def _begins_at(self, now: float) -> float:
        """When the next batch is best begun."""
        num_waiting = len(self.queue)
        if num_waiting == 0:
            return math.inf
        return self._lingering.begins_at(now, num_waiting, self.config.batch_sessions_max - num_waiting)

    def _num_tokens_max(self, seconds: float) -> int:
        """Tokens of one batch: what the device computes in the time that a decode step may wait for it."""
        num_blocks = self._sessions.num_blocks
        num_tokens = seconds * self.config.forward_tokens_per_second / num_blocks
        return int(min(max(num_tokens, BATCH_TOKENS_MIN), BATCH_TOKENS_MAX))

    def finished(self, job: object, result: object, now: float) -> Sequence[Effect]:
        """A computation is done: answer for it, and start the next."""
        assert isinstance(job, Batch | RequestJob) and job is self._running
        self._running = None
        seconds = now - self._started_at
        self.work += self._work_of(job, seconds)
        if not self._is_running_standbys:  # what others wait for is measured
            previous = self.job_seconds if self.job_seconds is not None else seconds
            self.job_seconds = previous + RATE_SMOOTHING * (seconds - previous)
        if isinstance(result, stateless.Forwarded):
            assert isinstance(job, RequestJob) and isinstance(job.request, Forward)
            if result.kept is not None:
                self.kept.add(job.client, job.request, result.kept, now)
            result = result.answer
        if isinstance(job, RequestJob):
            effects = list(stateless.answer(job.source, job.request, result))
        else:
            effects = self._batch_finished(job, result, now)
        return [*effects, *self.run_next(now)]

    def _work_of(self, job: Batch | RequestJob, seconds: float) -> Work:
        if isinstance(job, RequestJob):
            return Work(tuning=Spent(seconds, job.num_tokens_left))
        spent = Spent(seconds, job.num_tokens)
        return Work(standing_by=spent) if self._is_running_standbys else Work(serving=spent)

    def _batch_finished(self, batch: Batch, result: object, now: float) -> list[Effect]:
        jobs = [part.job for part in batch.parts]
        if isinstance(result, Failed):
            return self._batch_failed(jobs, result)
        assert isinstance(result, list) and len(result) == len(jobs)
        effects: list[Effect] = []
        without_room: list[StepJob] = []
        answered: list[ServerSession] = []
        for job, outcome in zip(jobs, result, strict=True):
            job.compute_seconds += now - self._started_at
            if job.session.is_closed:
                continue
            if isinstance(outcome, WireTensor):
                effects += self._step_finished(job, outcome, now)
                if job.step.upto == job.session.enqueued and not job.is_alone:
                    answered.append(job.session)
            elif isinstance(outcome, Unanswered):
                job.session.applied, job.session.used_at = job.step.upto, now
                effects.append(standing_by(job.step, job.step.upto))
            elif isinstance(outcome, Progress):
                job.num_done = outcome.num_done
                job.session.used_at = now
                self.queue_of(job.session).put_back(job)
            else:
                assert isinstance(outcome, NoRoom)
                without_room.append(job)
        is_decoding = all(job.is_decoding for job in jobs)
        if not self._is_running_standbys:
            self._lingering.took(len(jobs), now - self._started_at, is_decoding=is_decoding)
            self._lingering.answered(answered, now)
        for job in without_room:  # the others come first: one of them may have to give way
            effects += self._make_room(job, now)
        return effects

    def _batch_failed(self, jobs: list[StepJob], failed: Failed) -> list[Effect]:
        """Close the session that failed; of several, find out which it was."""
        if len(jobs) > 1:
            for job in reversed(jobs):
                job.is_retried_alone = True
                self.queue_of(job.session).put_back(job)
            return []
        (job,) = jobs
        session = job.session
        if session.is_closed:
            return []
        self._sessions.close(session.key)
        refusal = refuse(job.step, f"the computation failed: {failed.error}")
        return [refusal, Note(f"closed a session of {session.client}: {failed.error}")]

    def _step_finished(self, job: StepJob, hidden: WireTensor, now: float) -> list[Effect]:
        session, step = job.session, job.step
        seconds = (job.compute_seconds, max(0.0, now - job.accepted_at - job.compute_seconds))
        output = make_output(session, step, hidden, seconds)
        session.applied, session.newest_output, session.used_at = step.upto, output, now
        return [*self.push_onward(session, step, output), Send(session.client, output)]

    def push_onward(self, session: ServerSession, step: Step, output: Output) -> list[Effect]:
        """Hand the hidden states straight to the next server, if any; the client's copy is off the critical path."""
        if len(step.route) == 1:
            return []
        session.next_peer = step.route[1].peer
        return [Send(Address(session.next_peer, ACTOR), onward(step, output))]

    def _make_room(self, job: StepJob, now: float) -> list[Effect]:
        """A step found no page: an other session gives way and replays later, or the step waits for one to end."""
        session = job.session
        if session.is_closed:
            return []
        if session.is_standby:
            self._sessions.close(session.key)
            session.cache.release()
            return [behind(job.step, 0), Note(f"a standby of {session.client.peer} gives way: no pages")]
        if not any(other.num_block_tokens for other in self._sessions if other is not session):
            self._sessions.close(session.key)
            return [refuse(job.step, f"the cache has no room for {session.length} positions", retry=2.0)]
        self.queue.put_back(job)
        victim = self._sessions.victim_for(session, now)
        if victim is None:
            job.waits_until = now + ROOM_SECONDS
            return []
        told = [behind(waiting.step, 0) for waiting in self.queue_of(victim).jobs_of(victim)]
        self._sessions.close(victim.key)
        victim.cache.release()
        return [*told, Note(f"a session of {victim.client.peer} gives way to one of {session.client.peer}: no pages")]
