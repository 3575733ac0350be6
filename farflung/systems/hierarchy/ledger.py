"""Who takes part, and what of theirs is durable: the fold of a server's journal (pure).

Invariants: a (client, lease, sequence) is credited once; leases of a client and sequences under a lease only grow; a
shard belongs to one lease at a time, and its cursor moves only with updates that are acknowledged.
"""

from collections.abc import Collection, Sequence

import msgspec

from farflung.systems.hierarchy.records import Committed, Granted, Leased, Merged, Record

NUM_JOININGS_REMEMBERED = 16
"""Of a client, whose late messages are still known."""


class Client(msgspec.Struct, forbid_unknown_fields=True):
    """What is known of one client over all its leases."""

    peer: str
    lease: int
    shard: int
    """-1: none."""
    sequence: int = 0
    """Newest update under `lease` that is durable."""
    instances: list[str] = []
    """Of its joinings, newest last."""
    newest_lease: int = 0
    newest_sequence: int = 0
    """Of its newest durable update, over all leases."""
    num_steps: int = 0
    num_updates: int = 0
    num_tokens: int = 0
    speed: float = 0.0
    loss: float = 0.0


class Ledger(msgspec.Struct, forbid_unknown_fields=True):
    """All clients, and their work together."""

    clients: dict[str, Client] = {}
    cursors: dict[int, dict[str, int]] = {}
    """By shard: where its data go on."""
    num_steps: int = 0
    num_tokens: int = 0
    num_updates: int = 0
    num_records: int = 0
    """Number of the newest record that is in here."""

    def take(self, record: Record) -> None:
        """Fold one record; those that are in here already change nothing."""
        if record.number <= self.num_records:
            return
        assert record.number == self.num_records + 1, "a record of the journal is missing"
        self.num_records = record.number
        match record:
            case Granted():
                self._grant(record)
            case Committed():
                self._commit(record)
            case Leased() | Merged():
                pass

    def _grant(self, record: Granted) -> None:
        before = self.clients.get(record.name)
        for name, other in self.clients.items():
            if record.shard >= 0 and other.shard == record.shard and name != record.name:
                other.shard = -1
        client = Client(peer=record.peer, lease=record.lease, shard=record.shard, instances=[record.instance])
        if before is not None:
            client.instances = [*before.instances, record.instance][-NUM_JOININGS_REMEMBERED:]
            client.newest_lease, client.newest_sequence = before.newest_lease, before.newest_sequence
            client.num_steps, client.num_updates = before.num_steps, before.num_updates
            client.num_tokens, client.speed, client.loss = before.num_tokens, before.speed, before.loss
        client.speed = record.speed or client.speed
        self.clients[record.name] = client

    def _commit(self, record: Committed) -> None:
        client, header = self.clients[record.name], record.header
        assert client.lease == record.lease and client.sequence < record.sequence, "an update is credited twice"
        client.sequence = record.sequence
        client.newest_lease, client.newest_sequence = record.lease, record.sequence
        client.num_steps += header.num_steps
        client.num_tokens += header.num_tokens
        client.num_updates += 1
        client.speed, client.loss = header.speed, header.loss
        self.num_steps += header.num_steps
        self.num_tokens += header.num_tokens
        self.num_updates += 1
        if client.shard >= 0 and client.shard == header.shard:
            self.cursors[client.shard] = header.cursor

    def newest(self, name: str, lease: int) -> int:
        """Number of the newest durable update of a client under `lease` or a later one; 0: there is none.

        A client numbers its updates on over its leases, and sends one that was not taken under the next lease again.
        """
        client = self.clients.get(name)
        return client.newest_sequence if client is not None and client.newest_lease >= lease else 0

    def free_shard(self, name: str, shards: Sequence[int], held: Collection[int]) -> int:
        """A shard for `name`: its own, else the first of `shards` that is not `held`; -1 if there is none."""
        client = self.clients.get(name)
        if client is not None and client.shard >= 0:
            return client.shard
        return next((shard for shard in shards if shard not in held), -1)

    def speed_max(self) -> float:
        """Of all clients that were ever here."""
        return max((client.speed for client in self.clients.values()), default=0.0)
