"""One inference session over a chain of servers that may die at any moment (PETALS, Algorithm 1).

The client keeps the history of every boundary between spans. A step normally goes to the first server and is pushed
from server to server. When anything goes wrong the client walks the chain itself: whoever has the step answers again,
whoever is behind or new gets the compacted history of its span, whoever does not answer is replaced.

Invariant: what `step` returns is what an undisturbed chain would have returned.
"""

from collections.abc import Sequence

import torch

from farflung.systems.swarm.adapters import NamedAdapter
from farflung.systems.swarm.answers import Answers
from farflung.systems.swarm.chain import Chain, Link
from farflung.systems.swarm.config import SessionConfig
from farflung.systems.swarm.explain import RecentSteps, StepTimes
from farflung.systems.swarm.handing import why_not_handed
from farflung.systems.swarm.messages import ACTOR, Attach, CloseSession, Edit, Hop, Reorder, Truncate
from farflung.systems.swarm.standby import Standbys
from farflung.systems.swarm.steps import Steps
from farflung.systems.swarm.view import NoRoute, SwarmView
from farflung.world.address import Address
from farflung.world.doors import World
from farflung.world.mailbox import Mailbox

SLOWEST_LINK_BYTES_PER_SECOND = 250_000.0
"""A link of 2 Mbit/s still counts as alive while it carries hidden states."""


class Session:
    """A cache spread over the swarm. Not for concurrent use; `close` it."""

    def __init__(
        self,
        world: World,
        view: SwarmView,
        config: SessionConfig,
        *,
        num_tokens_max: int,
        prompts_LPH: torch.Tensor | None = None,
        adapter: NamedAdapter | None = None,
    ) -> None:
        self._world = world
        self._view = view
        self._config = config
        self._num_tokens_max = num_tokens_max
        self._adapter = adapter
        self.name = view.new_name()
        self._mailbox = Mailbox(world, f"session-{self.name}")
        self._answers = Answers(view.num_blocks, view.hidden_size)
        named = adapter.name if adapter is not None else ""
        client = self._mailbox.address
        self._steps = Steps(self.name, client, view.model, config.codec, num_tokens_max, prompts_LPH, named)
        self._standbys = Standbys(self._mailbox, self.name, view, config, world.clock.now)
        self._edits: list[Edit] = []
        self._length = 0
        self._stuck_since: float | None = None
        """Since when servers have been replaced without one that answered."""
        self.num_replaced = 0
        self.num_replayed = 0
        """Positions that were sent to replacements, beside the newest ones."""
        self.times = StepTimes()
        self.recent = RecentSteps()

    @property
    def length(self) -> int:
        """Positions in the cache, with the edits that the next step will make."""
        return self._length

    @property
    def chain(self) -> Chain:
        """Where it runs at present."""
        return self._answers.chain

    def is_for(self, view: SwarmView) -> bool:
        """Whether this session runs on the servers of `view`."""
        return self._view is view

    def truncate(self, length: int) -> None:
        """Forget positions from `length` on; takes effect with the next step."""
        if length < self._length:
            self._length = length
            self._edits.append(Truncate(length))

    def reorder(self, rows: Sequence[int]) -> None:
        """Row i becomes what row rows[i] was; takes effect with the next step."""
        if self._length:
            self._edits.append(Reorder(tuple(rows)))

    async def step(
        self,
        hidden_BTH: torch.Tensor,
        position_ids_BT: torch.Tensor | None = None,
        attention_mask_BT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Append positions and return their hidden states after the last block, [batch, new positions, hidden size].

        `attention_mask_BT` covers the new positions only.

        Raises:
            Refused: every server that could help says that the request itself is wrong.
            NoRoute: no reachable server holds some block, and none came in time.
        """
        started_at = self._world.clock.now()
        numbers = self._log(hidden_BTH, position_ids_BT, attention_mask_BT)
        self._answers.expect(numbers)
        if not self._answers.chain.links:
            self._answers.chain = Chain(await self._find_hops(0, self._view.num_blocks))
            self._attach(self._answers.chain.links)
        if all(link.applied == numbers[0] - 1 for link in self._answers.chain.links):
            await self._run_pushed(numbers)
        while not self._answers.is_done:
            await self._walk(numbers[-1])
        self._answers.history.compact_if_worthwhile()
        if self._config.is_standby_wanted and not self._config.is_hop_per_block:
            await self._bring_standbys_nearer(numbers[-1])
        self.times = self._answers.times
        self.num_replayed += self.times.num_replayed
        self.times.seconds = self._world.clock.now() - started_at
        self.times.num_positions = hidden_BTH.shape[1]
        self.recent.add(self.times)
        return self._answers.final

    def hidden_states(self) -> list[torch.Tensor]:
        """Inputs of every link at the newest positions, first to last: with one hop per block, of every block."""
        numbers = self._answers.numbers
        return [
            self._answers.history.inputs(link.first, numbers.start - 1, numbers[-1])
            for link in self._answers.chain.links
        ]

    async def _bring_standbys_nearer(self, number: int) -> None:
        for link in self._standbys.due(self._answers.chain, self._answers.history, self._num_tokens_max):
            if link.wants_adapter and self._adapter is not None:
                link.wants_adapter = False
                trouble = await why_not_handed(self._world, self._view, self._adapter, link.hop)
                if trouble is not None:
                    self._standbys.drop(link.peer, trouble)
                    continue
            self._send_step(link, number, base=link.applied, route=[link], is_background=True)
            link.applied = number

    def close(self) -> None:
        """Free the caches of all servers. May be called twice."""
        for link in self._answers.chain.links:
            self._mailbox.send(Address(link.peer, ACTOR), CloseSession(session=self.name))
        self._answers.chain = Chain()
        self._standbys.close()
        self._mailbox.close()

    def _log(self, hidden: torch.Tensor, position_ids: torch.Tensor | None, mask: torch.Tensor | None) -> range:
        batch_size, num_new, _ = hidden.shape
        if position_ids is None:
            position_ids = torch.arange(self._length, self._length + num_new).expand(batch_size, num_new)
        else:
            self._steps.has_positions = True
        if mask is None:
            mask = torch.ones(batch_size, num_new, dtype=torch.int64)
        else:
            self._steps.has_padding = True
        places = position_ids.expand(batch_size, num_new), mask
        numbers = self._answers.history.extend(self._edits, hidden, places, self._config.piece_positions)
        self._edits, self._length = [], self._answers.history.length
        return numbers

    async def _run_pushed(self, numbers: range) -> None:
        """The fast path: every step once per segment; on the first sign of trouble leave the rest to `_walk`."""
        links = self._answers.chain.links
        for segment in self._answers.chain.segments(is_push_wanted=self._config.is_push_wanted):
            for number in numbers:
                self._send_step(segment[0], number, base=number - 1, route=segment)
            num_positions = sum(self._answers.history.step(number).num_positions for number in numbers)
            deadline = self._ask_again_at(segment, num_positions)
            if not await self._wait_for_output(segment[-1], deadline, watched=links, pushing=segment[:-1]):
                return

    async def _walk(self, number: int) -> None:
        """Bring every link, in order, to step `number`, until one had to be replaced."""
        for link in list(self._answers.chain.links):
            if self._answers.has_output(link):
                continue
            if not await self._ask(link, number):
                await self._replace(link)
            if not self._answers.has_output(link):
                return
            self._stuck_since = None

    async def _ask(self, link: Link, number: int, *, is_whole: bool = False) -> bool:
        """Make one server apply step `number` and send its output; False if it cannot or will not."""
        base = 0 if is_whole or self._answers.has_lost_some(link) else min(link.applied, number - 1)
        give_up_at = self._world.clock.now() + self._config.step_seconds_max
        num_asks = 0
        while num_asks < self._config.num_asks_max and self._world.clock.now() < give_up_at and link.trouble is None:
            if link.wants_adapter and self._adapter is not None:
                link.trouble = await why_not_handed(self._world, self._view, self._adapter, link.hop)
                link.wants_adapter = False
                continue
            if not await self._complete_history(link, base, number):
                return True  # an earlier link was replaced: walk the chain anew
            self._send_step(link, number, base=base, route=[link])
            self._answers.note_replay(base)
            link.is_behind, link.is_working = False, False
            deadline = self._ask_again_at([link], self._length)
            if await self._wait_for_output(link, deadline, watched=[link], is_whole=is_whole):
                return True
            num_asks = 0 if link.is_working else num_asks + 1
            if link.is_behind:
                base = link.applied if link.applied < base else 0
        link.trouble = link.trouble or "it does not answer"
        return False

    async def _complete_history(self, link: Link, base: int, number: int) -> bool:
        """Make sure that the history of a link's inputs since step `base` is here.

        Copies may have been lost with a link; then the server before replays and sends all its outputs again.
        False if that server had to be replaced.
        """
        if self._answers.history.is_complete(link.first, number, base):
            return True
        before = self._answers.chain.before(link)
        if await self._ask(before, number, is_whole=True) and self._answers.history.is_complete(link.first, number):
            return True
        if before.trouble is not None:
            await self._replace(before)
        return False

    async def _replace(self, link: Link) -> None:
        """Find other servers for the blocks of a link that failed."""
        reason = link.trouble or "it does not answer"
        self._view.ban(link.peer, reason, link.ban_seconds or self._config.ban_seconds)
        self._world.note(self._mailbox.actor, f"leaves {link.peer} for blocks {link.first}:{link.last}: {reason}")
        self._mailbox.send(Address(link.peer, ACTOR), CloseSession(session=self.name))
        now = self._world.clock.now()
        self._stuck_since = now if self._stuck_since is None else self._stuck_since
        if now - self._stuck_since > self._config.wait_seconds_max:
            raise NoRoute(f"Blocks {link.first}:{link.last} found no server that answers; the last said: {reason}.")
        stand_in = self._standbys.take_over(link)
        if stand_in is not None and self._view.is_usable(stand_in.peer):
            self._world.note(self._mailbox.actor, f"{stand_in.peer} goes on from step {stand_in.applied}")
            (taken,) = self._answers.chain.replace(link, [stand_in.hop])
            taken.applied = stand_in.applied
        else:
            self._attach(self._answers.chain.replace(link, await self._find_hops(link.first, link.last)))
        self._answers.times.num_replaced += 1
        self.num_replaced += 1

    async def _find_hops(self, first: int, last: int) -> Sequence[Hop]:
        return await self._view.find_hops(
            self._mailbox,
            first,
            last,
            num_tokens=self._num_tokens_max,
            num_positions=self._length,
            is_hop_per_block=self._config.is_hop_per_block,
            wait_seconds_max=self._config.wait_seconds_max,
        )

    def _ask_again_at(self, route: Sequence[Link], num_positions: int) -> float:
        """When silence means that something was lost: what the route may need for so many positions, and patience."""
        logged = self._answers.history.step(self._answers.number)
        num_bytes = logged.batch_size * num_positions * self._view.hidden_size * 4
        transfer_seconds = (len(route) + 1) * num_bytes / SLOWEST_LINK_BYTES_PER_SECOND
        return self._world.clock.now() + self._config.ask_again_seconds + transfer_seconds

    def _attach(self, links: Sequence[Link]) -> None:
        """Open a link to every server of the chain: outputs come back over it, and its loss is noticed."""
        for link in links:
            self._mailbox.send(Address(link.peer, ACTOR), Attach(session=self.name))

    def _send_step(
        self, link: Link, number: int, *, base: int, route: Sequence[Link], is_background: bool = False
    ) -> None:
        hops = tuple(hop.hop for hop in route)
        step = self._steps.make(self._answers.history, hops, base, number, is_background=is_background)
        self._mailbox.send(Address(link.peer, ACTOR), step)

    async def _wait_for_output(
        self,
        link: Link,
        deadline: float,
        *,
        watched: Sequence[Link],
        pushing: Sequence[Link] = (),
        is_whole: bool = False,
    ) -> bool:
        """Take messages until `link` has given the step under way, something goes wrong with a `watched` link, one of
        those `pushing` cannot hand on, or the deadline passes."""
        is_done = self._answers.has_whole_output if is_whole else self._answers.has_output
        while not is_done(link):
            received = await self._mailbox.receive(deadline)
            if received is None:
                return False
            self._answers.take(*received)
            self._standbys.take(*received, self._answers.chain)
            is_broken = any(other.needs_care for other in watched)
            if is_broken or not all(other.can_push for other in pushing):
                return is_done(link)
        return True
