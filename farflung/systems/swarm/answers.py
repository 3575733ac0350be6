"""What a session makes of the messages that reach it: outputs become history, troubles mark links (pure)."""

from collections.abc import Sequence

import torch

from farflung.systems.swarm.chain import Chain, Link
from farflung.systems.swarm.checks import FLOATING_DTYPES
from farflung.systems.swarm.explain import HopTimes, StepTimes
from farflung.systems.swarm.history import History
from farflung.systems.swarm.info import BlockRange
from farflung.systems.swarm.messages import Behind, Output, PushFailed, SessionRefused, Working
from farflung.wire.message import NoSuchActor
from farflung.wire.tensor import MalformedTensor, decode_tensor
from farflung.world.address import Address, PeerId
from farflung.world.errors import Refused
from farflung.world.mailbox import PeerLost

MISBEHAVIOUR_BAN_SECONDS = 600.0


class Answers:
    """The receiving half of a session: its chain, its history, and the step under way."""

    def __init__(self, num_blocks: int, hidden_size: int) -> None:
        self.num_blocks = num_blocks
        self.hidden_size = hidden_size
        self.chain = Chain()
        self.history = History()
        self.numbers = range(1, 1)
        self.times = StepTimes()
        self._times_before = (self.numbers, self.times)
        """Of the steps before, whose servers may still tell theirs."""
        self._finals: dict[int, torch.Tensor] = {}

    @property
    def number(self) -> int:
        """The newest step under way."""
        return self.numbers[-1]

    @property
    def is_done(self) -> bool:
        """Whether all that the last block made of the steps under way is here."""
        return len(self._finals) == len(self.numbers)

    @property
    def final(self) -> torch.Tensor:
        """What the last block made of the steps under way, [batch, their positions, hidden size]; `is_done` holds."""
        finals = [self._finals[number] for number in self.numbers]
        return finals[0] if len(finals) == 1 else torch.cat(finals, dim=1)

    def expect(self, numbers: range) -> None:
        """From now on these steps are under way, which follow each other without edits."""
        self._times_before = (self.numbers, self.times)
        self.numbers, self.times = numbers, StepTimes()
        self._finals.clear()

    def note_replay(self, base: int) -> None:
        """A server was sent the step under way, and all since step `base`."""
        num_new = self.history.num_new(base, self.number)
        self.times.num_replayed += num_new - self.history.step(self.number).num_positions

    def has_output(self, link: Link) -> bool:
        """Whether what `link` makes of the newest step under way is here; of the last link, of all that are."""
        if link.last == self.num_blocks:
            return self.is_done
        return self.history.has(link.last, self.number)

    def has_whole_output(self, link: Link) -> bool:
        """Whether all that the next link would need to start afresh is here."""
        if link.last == self.num_blocks:
            return self.is_done
        return self.history.is_complete(link.last, self.number)

    def has_lost_some(self, link: Link) -> bool:
        """Whether the newest step's result is here and one before is not, which nobody will send by itself."""
        return link.last == self.num_blocks and self.number in self._finals and not self.is_done

    def take(self, source: Address, message: object) -> None:
        """Note what a message says.

        Raises:
            Refused: the request itself is wrong, so that no server would take it.
        """
        match message:
            case Output(first=first, last=last):
                self._take_output(self.chain.find(source.peer, first, last), message)
            case Behind(first=first, last=last, upto=upto, applied=applied):
                link = self.chain.find(source.peer, first, last)
                if link is not None and upto == self.number:
                    link.is_behind, link.is_working, link.applied = True, False, applied
            case Working(first=first, last=last, upto=upto):
                link = self.chain.find(source.peer, first, last)
                if link is not None and upto == self.number:
                    link.is_behind, link.is_working = False, True
            case SessionRefused(first=first, last=last, upto=upto) if upto in self.numbers:
                self._take_refusal(self.chain.find(source.peer, first, last), message)
            case PeerLost(peer, reason):
                _mark(self.chain.on(peer), reason)
            case NoSuchActor():
                _mark(self.chain.on(source.peer), "it serves no blocks any more")
            case PushFailed(next_peer=next_peer):
                self._take_push_failure(source.peer, next_peer)
            case _:
                pass

    def _take_refusal(self, link: Link | None, refusal: SessionRefused) -> None:
        if link is None:
            return
        if refusal.is_fault_of_client:
            raise Refused(link.peer, refusal.reason)
        if refusal.wants_adapter:
            link.wants_adapter = True
            return
        _mark([link], refusal.reason, refusal.retry_after_seconds)

    def _take_push_failure(self, peer: PeerId, next_peer: PeerId) -> None:
        for link, following in self.chain.pairs():
            if link.peer == peer and following.peer == next_peer:
                link.can_push = False

    def _take_output(self, link: Link | None, output: Output) -> None:
        """Keep an output: the newest of the last block is the result, those in between are history."""
        if link is None or not 1 <= output.upto <= self.number:
            return
        logged = self.history.step(output.upto)
        try:
            if not 0 <= output.base < output.upto:
                raise MalformedTensor(f"an output of step {output.upto} from step {output.base}")
            num_positions = self.history.num_new(output.base, output.upto)
            expected = (logged.batch_size, num_positions, self.hidden_size)
            if tuple(output.hidden.shape) != expected:
                raise MalformedTensor(f"an output of shape {output.hidden.shape[:8]} instead of {expected}")
            if output.hidden.dtype not in FLOATING_DTYPES:
                raise MalformedTensor(f"an output of {output.hidden.dtype[:20]}, which no hidden states are")
            hidden = decode_tensor(output.hidden)
        except MalformedTensor as error:
            _mark([link], f"it misbehaved: {error}", MISBEHAVIOUR_BAN_SECONDS)
            return
        self._applied_up_to(link, output.upto)
        if link.last != self.num_blocks:
            is_whole = output.base == 0
            newest = hidden if is_whole else hidden[:, -logged.num_positions :]
            self.history.record(link.last, output.upto, newest, is_whole=is_whole)
        elif output.upto in self.numbers:
            self._keep_final(output.upto, hidden)
        for numbers, times in (self._times_before, (self.numbers, self.times)):
            if output.upto in numbers:
                blocks = BlockRange(link.first, link.last)
                times.add(HopTimes(link.peer, blocks, output.compute_seconds, output.queue_seconds))

    def _keep_final(self, upto: int, hidden: torch.Tensor) -> None:
        """The newest positions of an output are those of step `upto`; what was computed afresh has those before too."""
        for number in reversed(range(self.numbers.start, upto + 1)):
            num_positions = self.history.step(number).num_positions
            if hidden.shape[1] < num_positions:
                return
            self._finals[number] = hidden[:, hidden.shape[1] - num_positions :]
            hidden = hidden[:, : hidden.shape[1] - num_positions]

    def _applied_up_to(self, link: Link, number: int) -> None:
        """A link that gave a step had it from those before it, whose own copies may still be under way."""
        for earlier in self.chain.links:
            earlier.applied = max(earlier.applied, number)
            if earlier is link:
                return


def _mark(links: Sequence[Link], trouble: str, ban_seconds: float = 0.0) -> None:
    for link in links:
        link.trouble, link.ban_seconds = trouble, ban_seconds
