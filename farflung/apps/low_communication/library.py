"""`farflung.LowCommunication`: training across sites on anyone's own loop, over the hooks of any torch optimizer.

with LowCommunication(model, optimizer, policy=DesLoc(parameters_every=32), swarm=TICKET):
    for batch in data:
        loss(model, batch).backward()
        optimizer.step()                     # after every 32nd the sites' averages are taken over here
        optimizer.zero_grad()
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import distributed, nn
from torch.optim import Optimizer

from farflung.apps.low_communication.policy import DesLoc, Policy
from farflung.apps.low_communication.rounds import Rounds
from farflung.apps.low_communication.states import OptimizerStates
from farflung.apps.low_communication.whereabouts import Whereabouts
from farflung.learn.redistribute import Site


class LowCommunication:
    """A loop's membership in a training run, from entering its `with` block to leaving it.

    On entering, the parameters, moments and step count of the run are taken over. All ranks of a `torchrun` group make
    one together: with FSDP2 each rank exchanges its own shard, with DDP one rank speaks for all; sites need not have
    the same number of ranks. Losses, data and learning rates stay the program's own affair (`num_steps` tells a
    schedule where a run is that was joined late), and so do buffers such as the running means of a batch norm.

    Leaving is possible at any time: what was learned after the last average stays with this site alone, and the others
    go on. So end on a multiple of `parameters_every` steps. A site that is left alone goes on alone, and averages again
    as soon as others are there.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        policy: Policy | None = None,
        swarm: str | None = None,
        new_swarm: str | None = None,
        run: str = "training",
        region: str = "",
        host: str | None = None,
        port: int = 0,
        advertise: Sequence[str] = (),
        process_group: distributed.ProcessGroup | None = None,
        num_lanes: int | None = None,
        on_ticket: Callable[[str], None] = lambda ticket: print(f"other sites join with swarm={ticket!r}", flush=True),
        wait_seconds_max: float = 600.0,
    ) -> None:
        """Nothing is sent before the `with` block.

        `optimizer`: one, or several that are stepped in this order (Muon beside AdamW). `policy`: by default
        `DesLoc()`. `swarm`: a worker's ticket, by default that of FARFLUNG_TICKET; or found one of the name
        `new_swarm`, and hand the others its ticket (`on_ticket`, which by default prints it). `run`: sites with the
        same name train together. `region`: sites of one region are next to each other on the ring. `host`, `port`,
        `advertise`: where this site can be called; without a host it only calls, and what others send comes through
        the swarm's rendezvous nodes. `process_group`: the ranks of this site, by default all. `num_lanes`: shares in
        which states travel, decided by the first site; by default 1, or the number of ranks if its model is sharded.
        `wait_seconds_max`: how long to wait at first for other sites.

        Raises:
            ValueError: an optimizer that is not of this model, settings that do not fit each other.
        """
        if new_swarm is not None and (swarm is not None or host is None):
            raise ValueError("a founder needs no ticket, but a host at which the others can call it: host='0.0.0.0'")
        if num_lanes is not None and num_lanes < 1:
            raise ValueError(f"num_lanes must be at least 1, not {num_lanes}")
        self._policy = policy or DesLoc()
        self._optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
        states = OptimizerStates(model, self._optimizers)
        where = Whereabouts(
            swarm=swarm,
            new_swarm=new_swarm,
            run=run,
            region=region,
            host=host,
            port=port,
            advertise=tuple(advertise),
            num_lanes=num_lanes,
            on_ticket=on_ticket,
            wait_seconds_max=wait_seconds_max,
        )
        self._rounds = Rounds(states, self._policy, where, Site(process_group))
        self._hooks: list[Any] = []
        self._is_inside = False

    @property
    def num_steps(self) -> int:
        """Optimizer steps behind the state that is trained, those of a run that was joined late included."""
        return self._rounds.num_steps

    @property
    def num_rounds(self) -> int:
        """Averages that this site has taken part in; told on the ranks that speak for it."""
        return self._rounds.num_rounds

    @property
    def ticket(self) -> str:
        """A worker's ticket of the swarm that was founded, valid for a week. Whoever reads it may join."""
        return self._rounds.ticket

    def __enter__(self) -> "LowCommunication":
        """Join the run: find the other sites, and take over the run's state.

        Raises:
            ValueError: a bad ticket, or a run that trains something else.
            FarflungError: nobody of the swarm answers, or too few sites come in time.
        """
        if self._is_inside:
            raise ValueError("this LowCommunication is in use; make another for another loop")
        self._rounds.open()
        self._is_inside = True
        if self._policy.average_before == "update":
            self._hooks.append(self._optimizers[0].register_step_pre_hook(lambda *_: self._rounds.turn_if_due()))
        self._hooks.append(self._optimizers[-1].register_step_post_hook(lambda *_: self._after_step()))
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        try:
            if kind is None:
                self._rounds.turn_if_due()
        finally:
            self.close()

    def close(self) -> None:
        """Leave the run; a round that is under way is given up, by all. May be called twice."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._rounds.close()
        self._is_inside = False

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside model and optimizer: the outer rule's state, residuals, agreed parameters.

        Each rank saves its own. Take it between steps.
        """
        return self._rounds.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint; before the `with` block, with model and optimizer loaded already.

        Raises:
            ValueError: inside the block.
        """
        if self._is_inside:
            raise ValueError("load_state_dict comes before the `with` block, in which others rely on this state")
        self._rounds.load_state_dict(state)

    def _after_step(self) -> None:
        self._rounds.count_step()
        if self._policy.average_before == "gradient":
            self._rounds.turn_if_due()
