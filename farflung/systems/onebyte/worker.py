"""A measurer: it holds the journal, measures the slots that it is given, sends their bytes, and signs what counts.

Its weights are a cache of the journal. It may come at any round and leave at any moment; what it has sent and does not
find in the journal it sends again, also to another sequencer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from farflung.systems.onebyte.claims import claim_content
from farflung.systems.onebyte.config import Group, RoundsConfig
from farflung.systems.onebyte.header import Header, header_hash
from farflung.systems.onebyte.held_journal import HeldJournal
from farflung.systems.onebyte.journal import CHECK_BYTES
from farflung.systems.onebyte.learning import Accounted, Learner, Told
from farflung.systems.onebyte.masked_measurements import MaskedMeasurements, measurements_for
from farflung.systems.onebyte.messages import (
    ACTOR,
    CLAIM_PURPOSE,
    ByteCohort,
    ByteJoin,
    ByteNews,
    ByteNotSequencer,
    ByteReady,
    ByteSignature,
    ByteSpent,
)
from farflung.systems.onebyte.privacy import BudgetSpent
from farflung.systems.onebyte.signing import Signing
from farflung.systems.onebyte.steps import Step
from farflung.wire.identity import KEY_BYTES, Identity
from farflung.wire.message import NoSuchActor, Refusal
from farflung.world.address import Address, PeerId
from farflung.world.doors import Failed, World
from farflung.world.errors import PeerMisbehaved, Refused
from farflung.world.mailbox import Mailbox, PeerLost
from farflung.world.version import __version__

MEASURER_ACTOR = "m"
"""It is on every message, so it is short."""


@dataclass(frozen=True, slots=True)
class _Computed:
    """A computation is done; stands in the mailbox among the messages."""

    what: str
    round_number: int
    slots: range
    result: Any


class Worker:
    """One measurer's life. `await run()`, in the process that computes."""

    def __init__(
        self,
        world: World,
        header: Header,
        config: RoundsConfig,
        group: Group,
        identity: Identity,
        learner: Learner,
        *,
        name: str,
        seconds_per_slot: float = 0.0,
    ) -> None:
        """`identity`: signs its entries. `seconds_per_slot`: what the simulator charges for measuring one."""
        self.journal = HeldJournal(header)
        self._world = world
        self._header = header
        self._config = config
        self._group = group
        self._identity = identity
        self._learner = learner
        self._name = name
        self._seconds_per_slot = seconds_per_slot
        self._instance = f"{world.random(f'joining as {name}').getrandbits(64):016x}"
        self._sequencer = group.candidates[0]
        secret = world.random(f"masks of {self._instance}").randbytes(KEY_BYTES)
        self._measurements = measurements_for(header, config.entries_per_message, identity, secret)
        self._signing = Signing(config, self.journal, identity, self._measurements)
        self._num_computing = 0
        self._asked_at: float | None = None
        """When the question was asked that has had no answer."""
        self._ask_at = world.clock.now()
        self._ask_seconds = config.ask_again_seconds
        self._must_join = True
        self._reason = ""
        """Why it measures no more."""

    def report(self) -> Told:
        """So far."""
        ledger = self.journal.ledger
        return Told(
            num_rounds=ledger.num_rounds,
            num_measured=self._measurements.num_measured,
            num_counted=self._signing.num_counted,
            is_over=ledger.is_closed,
            epsilon=self._learner.epsilon if isinstance(self._learner, Accounted) else None,
            reason=self._reason,
        )

    async def run(self) -> Told:
        """Measure as long as there is a budget of privacy, and follow to the end, with the weights of the journal.

        Raises:
            Refused: the sequencer will not have this measurer.
            PeerMisbehaved: the journal that it tells is not one that can follow from what it told before.
        """
        with Mailbox(self._world, MEASURER_ACTOR) as mailbox:
            while not self.journal.ledger.is_closed or self._num_computing:
                self._measure_next(mailbox)
                received = await mailbox.receive(self._deadline())
                if received is not None:
                    self._take(mailbox, *received)
                else:
                    self._ask(mailbox)
            return self.report()

    def _deadline(self) -> float:
        # While it computes there is nothing to ask for; the end of the computation wakes it.
        return float("inf") if self._num_computing else self._ask_at

    # Asking

    def _ask(self, mailbox: Mailbox) -> None:
        """Join, or say how far the journal is here."""
        now = self._world.clock.now()
        if self._asked_at is not None:
            self._asked_at += now - self._ask_at  # while it computed or stood still, it could not hear an answer
            if now - self._asked_at > self._config.silence_seconds:
                self._turn_to(self._next_candidate())
        if self._asked_at is None:
            self._asked_at = now
        if self._must_join:
            self._join(mailbox)
        if self._reason:
            self._send(mailbox, ByteSpent())
        if self._signing.is_at_end:
            self._sign_if_due(mailbox)
        self._send(mailbox, ByteReady(num_records=self.journal.num_records, check=self.journal.check))
        self._ask_at = now + self._ask_seconds
        self._ask_seconds = min(2 * self._ask_seconds, self._config.ask_again_seconds_max)

    def _join(self, mailbox: Mailbox) -> None:
        run = header_hash(self._header)
        claim = self._identity.sign(CLAIM_PURPOSE, claim_content(run, self._world.network.peer))
        self._must_join = False
        join = ByteJoin(
            run=run,
            code=__version__,
            name=self._name,
            claim=claim,
            instance=self._instance,
            mask_key=self._measurements.mask_key,
        )
        self._send(mailbox, join)
        self._send_all(mailbox, self._measurements.uncounted(self.journal.ledger, self._signing.own))

    def _turn_to(self, sequencer: PeerId) -> None:
        self._sequencer = sequencer
        self._must_join = True
        self._asked_at = None
        self._ask_seconds = self._config.ask_again_seconds

    def _next_candidate(self) -> PeerId:
        candidates = self._group.candidates
        return candidates[(candidates.index(self._sequencer) + 1) % len(candidates)]

    def _send(self, mailbox: Mailbox, message: object) -> None:
        mailbox.send(Address(self._sequencer, ACTOR), message)

    def _send_all(self, mailbox: Mailbox, messages: Sequence[object]) -> None:
        for message in messages:
            self._send(mailbox, message)

    # Hearing

    def _take(self, mailbox: Mailbox, source: Address, message: object) -> None:
        if isinstance(message, _Computed):
            self._take_result(mailbox, message)
            return
        if source.peer != self._sequencer:
            return
        now = self._world.clock.now()
        match message:
            case ByteNotSequencer(sequencer=sequencer) if sequencer in self._group.candidates:
                self._turn_to(PeerId(sequencer))
                self._ask_at = now + self._config.beat_seconds
            case PeerLost() | NoSuchActor() | ByteNotSequencer():
                self._turn_to(self._next_candidate())
                self._ask_at = now + self._config.beat_seconds
            case Refusal(reason=reason):
                raise Refused(source.peer, reason)
            case ByteNews():
                self._asked_at = None
                self._take_news(mailbox, message)
            case ByteCohort() if isinstance(self._measurements, MaskedMeasurements):
                self._asked_at = None
                self._take_cohort(mailbox, message, self._measurements)
            case _:
                pass

    def _take_news(self, mailbox: Mailbox, news: ByteNews) -> None:
        journal = self.journal
        if news.first_record > journal.num_records:
            self._ask_at = self._world.clock.now()  # something before it was lost
            return
        new = news.records[journal.num_records - news.first_record :]
        first_round = journal.ledger.num_rounds
        steps = [step for content in new for step in self._take_record(content)]
        is_at_end = news.first_record + len(news.records) == journal.num_records
        if news.records and is_at_end and news.check != journal.check:
            raise PeerMisbehaved(self._sequencer, "it tells another journal than before")
        if new:
            self._move(mailbox, first_round, steps)
        if is_at_end and not journal.ledger.is_closed:
            self._send_all(mailbox, self._measurements.ask(journal.ledger, news.slots))
        # Records without slots may be a piece of more; silence in return says that there is nothing to do.
        is_idle = not new and (self._measurements.is_idle or bool(self._reason))
        now = self._world.clock.now()
        self._ask_at = now + self._ask_seconds if is_idle or news.slots else now
        if not is_idle:
            self._ask_seconds = self._config.ask_again_seconds

    def _take_cohort(self, mailbox: Mailbox, message: ByteCohort, measurements: MaskedMeasurements) -> None:
        now = self._world.clock.now()
        if message.members and measurements.mask_key not in message.members:
            self._must_join, self._ask_at = True, now + self._config.beat_seconds  # meant for an earlier life
            return
        try:
            answers = measurements.ask_for(message, self.journal.ledger)
        except ValueError as error:
            raise PeerMisbehaved(self._sequencer, f"it forms {error}") from None
        self._ask_at = now if answers is None else now + self._ask_seconds
        self._send_all(mailbox, answers or ())

    def _take_record(self, content: bytes) -> list[Step]:
        try:
            return self.journal.take(content)
        except ValueError as error:
            raise PeerMisbehaved(self._sequencer, f"a record does not follow from its journal: {error}") from None

    def _move(self, mailbox: Mailbox, first_round: int, steps: list[Step]) -> None:
        """The weights follow the journal; what is left of an older round's slots is left to others."""
        ledger = self.journal.ledger
        if steps:
            self._compute(mailbox, _Computed("move", 0, range(0), None), self._learner.add, steps)
        if ledger.num_rounds > first_round:
            self._measurements.begin_round(ledger.num_rounds)
        self._signing.take(self.journal.rounds[first_round:])
        self._sign_if_due(mailbox)

    # Signing

    def _sign_if_due(self, mailbox: Mailbox) -> None:
        signature = self._signing.signature_due()
        if signature is not None:
            done = _Computed("sign", self.journal.ledger.num_rounds, range(0), signature)
            self._compute(mailbox, done, self._learner.digest)

    # Measuring

    def _measure_next(self, mailbox: Mailbox) -> None:
        slots = self._measurements.next()
        if slots is None:
            return
        number = self.journal.ledger.num_rounds
        done, seconds = _Computed("measure", number, slots, None), len(slots) * self._seconds_per_slot
        self._compute(mailbox, done, self._learner.measure, number, slots.start, len(slots), seconds=seconds)

    def _compute(
        self, mailbox: Mailbox, done: _Computed, function: Callable[..., object], *arguments: object, seconds: float = 0
    ) -> None:
        """Run `function` on the device; its result comes into the mailbox, behind what `done` holds already."""
        self._num_computing += 1

        def finished(result: object) -> None:
            mailbox.deliver(mailbox.address, replace(done, result=(done.result, result)))

        self._world.compute.submit(finished, function, *arguments, seconds=seconds)

    def _take_result(self, mailbox: Mailbox, done: _Computed) -> None:
        self._num_computing -= 1
        before, result = done.result
        if isinstance(result, Failed):
            if not isinstance(result.error, BudgetSpent):
                raise result.error
            # What it was to measure stays under way for ever, so that it measures nothing more.
            self._reason, self._signing.must_end, self._ask_at = str(result.error), True, self._world.clock.now()
            return
        if done.what == "measure":
            ledger = self.journal.ledger
            self._send_all(mailbox, self._measurements.done(done.round_number, done.slots, result, ledger))
            self._ask_at = self._world.clock.now() + self._ask_seconds
        elif done.what == "sign":
            state = result[:CHECK_BYTES]
            self._send(mailbox, ByteSignature(end_round=done.round_number, signature=before, state=state))
