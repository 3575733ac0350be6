"""One candidate's copy of the journal: it orders, or it follows (a state machine without a network of its own).

Invariants: what counts is in the log of every member of the view and is never cut; a sequencer counts only copies that
were confirmed in its own epoch; what it has proposed to the witness binds it from then on, also after a restart.
"""

from collections.abc import Sequence

from farflung.systems.onebyte.config import Group, RoundsConfig
from farflung.systems.onebyte.copies import Copy
from farflung.systems.onebyte.header import Header
from farflung.systems.onebyte.log import Log, journal_name
from farflung.systems.onebyte.messages import (
    ACTOR,
    WITNESS_ACTOR,
    ByteCopied,
    ByteCopy,
    ByteFollow,
    ByteLead,
    BytePropose,
    ByteResume,
    ByteViewIs,
    View,
)
from farflung.systems.onebyte.presence import Presence
from farflung.systems.onebyte.views import decode_view, encode_view, first_view, members
from farflung.wire.message import Message
from farflung.world.address import Address, PeerId
from farflung.world.doors import World
from farflung.world.effects import Effect, Note, Save, Send


class Replica:
    """The part of a sequencer that keeps the journal together with the other candidates."""

    def __init__(
        self,
        me: PeerId,
        group: Group,
        config: RoundsConfig,
        log: Log,
        view: View,
        proposal: View | None,
        now: float,
        first_question: int = 0,
    ) -> None:
        """`proposal`: what was proposed to the witness, and has not been answered. `first_question`: another in each
        life, so that an answer to an earlier one is no answer."""
        self.me = me
        self.log = log
        self.view = view
        self.num_committed = 0
        """Records that count."""
        self._group = group
        self._config = config
        self._proposal = proposal
        self._key = f"onebyte-view-{log.header.run_name}"
        self._copies: dict[str, Copy] = {}
        """By candidate, since it has confirmed anything in this epoch."""
        self._awaited: dict[str, float] = {}
        """Who is about to be complete, and since when nothing counts without it: else those far away never are."""
        self._presence = Presence(config, group.candidates, now)
        self._question = (first_question, -1)
        """Number of the last question where logs part ways, and the records held then; -1: it is answered."""
        self._count()

    @classmethod
    def open(cls, world: World, header: Header, group: Group, config: RoundsConfig) -> "Replica":
        """As the disk has it.

        Raises:
            ValueError: what it remembers is about a candidate that this group does not have, and might have gone on.
        """
        me, run = world.network.peer, header.run_name
        assert me in group.candidates, f"{me} is no candidate for this run"
        log = Log.open(header, world.journal(journal_name(header)).records())
        view = decode_view(world.store.read(f"onebyte-view-{run}")) or first_view(group.candidates)
        strangers = [peer for peer in members(view) if peer not in group.candidates]
        if strangers:
            raise ValueError(
                f"{strangers[0]} kept this journal too, and may hold more of it: let it come back, with its home"
            )
        proposal = decode_view(world.store.read(f"onebyte-view-{run}-proposed"))
        # A standby may forget that it wanted to take over: it holds what counts, whichever view the witness accepted.
        if proposal is not None and (proposal.epoch <= view.epoch or view.sequencer != me):
            proposal = None
        first_question = world.random("questions to sequencers").getrandbits(48)
        return cls(me, group, config, log, view, proposal, world.clock.now(), first_question)

    @property
    def is_sequencer(self) -> bool:
        """Whether it orders, as far as it knows; what it orders counts only if it is right."""
        return self.view.sequencer == self.me

    # Ordering

    def order(self, contents: Sequence[bytes], now: float) -> list[Effect]:
        """Append records: they are on this disk before they travel, and count once `num_committed` passes them."""
        assert self.is_sequencer
        effects: list[Effect] = [*self.log.append(contents)]
        self._count()
        return effects + self._copy_to_all(now)

    def _count(self) -> None:
        if self.is_sequencer:
            copied = [self._copies[peer].num_records if peer in self._copies else 0 for peer in self._required()]
            self.num_committed = max(self.num_committed, min([len(self.log), *copied]))

    def _required(self) -> list[str]:
        """Whose copies a record needs: those of the view, of the one that may already have followed it, or will."""
        proposed = self._proposal.standbys if self._proposal is not None else ()
        needed = {*self.view.standbys, *proposed, *self._awaited}
        return [peer for peer in self._group.candidates if peer in needed]

    def _copy_to_all(self, now: float) -> list[Effect]:
        return [effect for peer in self._group.candidates for effect in self._copy_to(peer, now)]

    def _copy_to(self, peer: PeerId, now: float) -> list[Effect]:
        """The next records for a candidate that has told what it holds, unless some are under way."""
        copy = self._copies.get(peer)
        records = () if copy is None else copy.piece(self.log, now)
        if copy is None or not records:
            return []
        first, check = copy.num_records, self.log.check_after(copy.num_records)
        return [self._to(peer, ByteCopy(epoch=self.view.epoch, first_record=first, check=check, records=records))]

    def _take_copied(self, peer: PeerId, message: ByteCopied, now: float) -> list[Effect]:
        if not self.is_sequencer or message.epoch != self.view.epoch or message.num_records > len(self.log):
            return []
        copy = self._copies.setdefault(peer, Copy(self._config))
        copy.confirm(message.num_records, now)
        self._count()
        return [*self._admit(peer, copy, now), *self._copy_to(peer, now)]

    def _admit(self, peer: PeerId, copy: Copy, now: float) -> list[Effect]:
        """A candidate that holds all that counts becomes a standby, without which nothing counts from then on."""
        if peer in self.view.standbys or self._proposal is not None:
            return []
        if copy.num_records >= self.num_committed:
            return self._propose(View(self.view.epoch + 1, self.me, (*self.view.standbys, peer)))
        if copy.is_almost_complete:
            self._awaited.setdefault(peer, now)
        return []

    # Following

    def _take_lead(self, source: Address, view: View, now: float) -> list[Effect]:
        if view.epoch < self.view.epoch:
            return [self._to(source.peer, ByteLead(view=self.view))] if self.is_sequencer else []
        effects = self._adopt(view, now)
        if self.view.sequencer != source.peer:
            return effects
        self._proposal = None
        if self.me in self.view.standbys:
            return [*effects, self._to(source.peer, self._confirmation())]
        if self._question[1] != len(self.log):
            # Else it is asked again under its number: the way to the sequencer may take longer than a beat.
            self._question = (self._question[0] + 1, len(self.log))
        question = ByteFollow(epoch=view.epoch, number=self._question[0], marks=self.log.marks())
        return [*effects, self._to(source.peer, question)]

    def _take_follow(self, source: Address, message: ByteFollow, now: float) -> list[Effect]:
        agreed = self.log.agreement(message.marks)
        if not self.is_sequencer or message.epoch != self.view.epoch or agreed is None:
            return []
        return [self._to(source.peer, ByteResume(epoch=message.epoch, number=message.number, num_records=agreed))]

    def _take_resume(self, source: Address, message: ByteResume) -> list[Effect]:
        # A late answer, or one to a question from before more records came, must not cut what has been confirmed.
        is_answer = (message.number, len(self.log)) == self._question and message.epoch == self.view.epoch
        if not is_answer or self.me in members(self.view) or message.num_records > len(self.log):
            return []
        self._question = (self._question[0], -1)
        return [*self.log.cut(message.num_records), self._to(source.peer, self._confirmation())]

    def _take_copy(self, source: Address, message: ByteCopy) -> list[Effect]:
        if message.epoch != self.view.epoch or source.peer != self.view.sequencer:
            return []
        if message.first_record > len(self.log) or self.log.check_after(message.first_record) != message.check:
            return []
        new = message.records[len(self.log) - message.first_record :]
        return [*self.log.append(new), self._to(source.peer, self._confirmation())]

    def _confirmation(self) -> ByteCopied:
        return ByteCopied(epoch=self.view.epoch, num_records=len(self.log))

    # Views

    def _propose(self, view: View) -> list[Effect]:
        self._proposal = view
        self._awaited = {}
        return [Save(f"{self._key}-proposed", encode_view(view)), *self._ask_witness()]

    def _ask_witness(self) -> list[Effect]:
        assert self._group.witness is not None and self._proposal is not None
        return [Send(Address(self._group.witness, WITNESS_ACTOR), BytePropose(view=self._proposal))]

    def _adopt(self, view: View, now: float) -> list[Effect]:
        if view.epoch <= self.view.epoch:
            return []
        if view.sequencer != self.view.sequencer:
            self._presence.changed(len(self.log))
        self.view = view
        self._copies, self._awaited = {}, {}
        self._presence.begin(now)
        if self._proposal is not None and self._proposal.epoch <= view.epoch:
            self._proposal = None
        self._count()
        role = "orders" if self.is_sequencer else "follows" if self.me in view.standbys else "is out"
        return [Save(self._key, encode_view(view)), Note(f"view {view.epoch}: {self.me} {role}"), *self._beat()]

    def _beat(self) -> list[Effect]:
        others = [peer for peer in self._group.candidates if peer != self.me]
        return [self._to(peer, ByteLead(view=self.view)) for peer in others] if self.is_sequencer else []

    def beat(self, now: float) -> list[Effect]:
        """To be called in regular intervals: shows that it is there, sends again, replaces who is not."""
        self._presence.beat(now)
        self._awaited = {
            peer: since for peer, since in self._awaited.items() if now - since <= self._config.absence_seconds
        }
        self._count()
        effects = [*self._beat(), *(self._copy_to_all(now) if self.is_sequencer else [])]
        if self._proposal is not None:
            return [*effects, *self._ask_witness()]
        return effects + (self._go_on_without(now) if self.is_sequencer else self._take_over(now))

    def _go_on_without(self, now: float) -> list[Effect]:
        absent = [peer for peer in self.view.standbys if self._presence.is_absent(peer, now)]
        if not absent:
            return []
        present = tuple(peer for peer in self.view.standbys if peer not in absent)
        return [
            Note(f"goes on without {', '.join(absent)}"),
            *self._propose(View(self.view.epoch + 1, self.me, present)),
        ]

    def _take_over(self, now: float) -> list[Effect]:
        if self.me not in self.view.standbys:
            return []
        place = self.view.standbys.index(self.me)
        if not self._presence.is_absent(self.view.sequencer, now, others_before=place):
            return []
        return [Note(f"{self.view.sequencer} is gone"), *self._propose(View(self.view.epoch + 1, self.me, ()))]

    def receive(self, source: Address, message: object, now: float) -> list[Effect]:
        """Messages of candidates and of the witness; from others they mean nothing."""
        if isinstance(message, ByteViewIs) and source.peer == self._group.witness:
            return self._adopt(message.view, now)
        if source.peer not in self._group.candidates:
            return []
        self._presence.heard(source.peer, now)
        match message:
            case ByteLead(view=view):
                return self._take_lead(source, view, now)
            case ByteCopy():
                return self._take_copy(source, message)
            case ByteCopied():
                return self._take_copied(source.peer, message, now)
            case ByteFollow():
                return self._take_follow(source, message, now)
            case ByteResume():
                return self._take_resume(source, message)
            case _:
                return []

    def _to(self, peer: str, message: Message) -> Send:
        return Send(Address(PeerId(peer), ACTOR), message)
