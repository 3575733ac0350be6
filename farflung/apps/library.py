"""What programs import: transformers models whose blocks are served by a swarm."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache

from farflung.apps.announced import AnnouncedServers
from farflung.apps.speed import is_faster_by_column
from farflung.apps.tickets import find_ticket
from farflung.apps.wiring import Connection
from farflung.model.layout import order_for_decoding
from farflung.model.peft_files import load_adapter
from farflung.model.source import ModelSource
from farflung.systems.swarm.adapters import NamedAdapter
from farflung.systems.swarm.client import SwarmBlocks, SwarmModel, load_swarm_model
from farflung.systems.swarm.config import SessionConfig
from farflung.systems.swarm.explain import RecentSteps, RouteReport
from farflung.systems.swarm.route import MissingBlocks
from farflung.systems.swarm.session import Session
from farflung.systems.swarm.view import SwarmView

session_watcher: ContextVar[Callable[[Session], object] | None] = ContextVar("told of every session", default=None)
"""Told of each session that `ConnectedModel.open_cache` opens in its context."""


@dataclass(slots=True)
class ConnectedModel:
    """A model together with the connection over which its blocks are reached."""

    source: ModelSource
    model: PreTrainedModel
    connection: Connection
    view: SwarmView
    num_reroutes: int = 0
    """Stages that sessions opened by `open_cache` moved to another server."""

    @property
    def blocks(self) -> SwarmBlocks:
        """The remote blocks of the model."""
        return cast(SwarmModel, self.model)._blocks

    @contextmanager
    def open_cache(self, num_tokens: int, adapter: NamedAdapter | None = None) -> Iterator[Cache]:
        """A cache of that many tokens in the swarm, freed on leaving; what passes through it is adapted."""
        cache = self.blocks.open_cache(num_tokens, adapter=adapter)
        watcher = session_watcher.get()
        if watcher is not None:
            watcher(cache.session)
        try:
            yield cache
        finally:
            self.num_reroutes += cache.session.num_replaced
            cache.close()

    def hidden_states(self, ids_NT: torch.Tensor, *, adapter: NamedAdapter | None = None) -> torch.Tensor:
        """What the model makes of tokens, after the final norm: (N, T, hidden size)."""
        with cast(SwarmModel, self.model).last_hidden_states() as collected:
            if adapter is None:
                self.model(input_ids=ids_NT, use_cache=False, logits_to_keep=1)
            else:
                with self.open_cache(ids_NT.numel(), adapter=adapter) as cache:
                    self.model(input_ids=ids_NT, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return collected[0]

    def watch_route(self, *, is_guessing: bool) -> Callable[[], RouteReport | None]:
        """Watch sessions that are opened in this context; returns what tells the newest one's route."""
        opened: list[RecentSteps] = []
        watcher = session_watcher.get()

        def watch(session: Session) -> None:
            opened.append(session.recent)
            if watcher is not None:
                watcher(session)

        def look() -> RouteReport | None:
            return opened[-1].report(self.view.servers(), is_guessing=is_guessing) if opened else None

        session_watcher.set(watch)
        return lambda: self.connection.bridge.call(look)

    def why_unavailable(self) -> str | None:
        """A sentence when no chain of servers holds all blocks now, else None."""

        async def look() -> str | None:
            route = self.view.route(0, self.source.num_blocks, num_tokens=1)
            return str(route) if isinstance(route, MissingBlocks) else None

        return self.connection.bridge.run(look())


def connect_model(
    source: ModelSource,
    connection: Connection,
    *,
    config: SessionConfig | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    on_wait: Callable[[str, float], None] = lambda sentence, seconds_left: None,
) -> ConnectedModel:
    """Load embeddings, norm and head of `source`, and reach its blocks over `connection`."""
    view = SwarmView(
        world=connection.node.world,
        model=source.fingerprint,
        num_blocks=source.num_blocks,
        hidden_size=source.hidden_size,
        announced=AnnouncedServers(connection.node.member),
        on_wait=on_wait,
    )
    world, bridge = connection.node.world, connection.bridge
    model = load_swarm_model(source, world, view, bridge, config, device=str(device), dtype=dtype)
    order_for_decoding(model, is_faster_by_column)
    return ConnectedModel(source, model, connection, view)


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer beside the model.

    Raises:
        ValueError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(source.location)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{source.name} has no tokenizer that transformers can read ({reason})") from None


class AutoModelForCausalLM:
    """Like the class of the same name in transformers, with the blocks in a swarm."""

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        *,
        swarm: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        wait_seconds_max: float = 60.0,
        codec: str = "raw",
        adapter: str | Path | None = None,
        standby: bool = False,
    ) -> PreTrainedModel:
        """Join the swarm as a client and return the model, an instance of its family's own transformers class.

        `model`: a folder or a Hub id, of which only embeddings, norm and head are read. `swarm`: a ticket, by default
        that of FARFLUNG_TICKET. `wait_seconds_max`: how long to wait for blocks that no server holds at the moment.
        `codec`: how hidden states travel; only "raw" is exact. `adapter`: the folder of a LoRA adapter in peft's
        format, which the servers apply; `set_lora` changes it. `standby`: let a second holder of all blocks keep up
        with each session, so that the loss of a server costs a few tokens. The connection ends with the model or the
        process.

        Raises:
            ValueError: an unknown model, a bad ticket, an adapter that cannot be read or is of another model.
            FarflungError: nobody of the swarm answers.
        """
        source = ModelSource.open(model)
        lora = load_adapter(Path(adapter), source).requires_grad_(False) if adapter is not None else None
        connection = Connection(find_ticket(swarm))
        config = replace(SessionConfig(), wait_seconds_max=wait_seconds_max, codec=codec, is_standby_wanted=standby)
        try:
            connected = connect_model(source, connection, config=config, device=device, dtype=dtype)
        except BaseException:
            connection.close()
            raise
        cast(SwarmModel, connected.model).set_lora(lora)
        weakref.finalize(connected.model, connection.close)
        return connected.model
