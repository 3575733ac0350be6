"""Which rendezvous nodes a ticket that is made now should name."""

from collections.abc import Mapping, Sequence

from farflung.mesh.records import Record
from farflung.wire.ticket import Meeting
from farflung.world.address import PeerId

MEETINGS_MAX = 8
"""Rendezvous nodes that a ticket names; any one alive is enough."""


def meetings_now(first: Meeting, view: Mapping[PeerId, Record], others: Sequence[Meeting] = ()) -> list[Meeting]:
    """`first` (the founder, or a run's lead), then whoever of `view` keeps the directory now, then `others`."""
    found = {first.peer: first}
    for peer in sorted(view):
        record = view[peer]
        if record.is_rendezvous and record.contact.endpoints:
            found.setdefault(peer, Meeting(peer, record.contact.endpoints))
    for meeting in others:
        found.setdefault(meeting.peer, meeting)
    return list(found.values())[:MEETINGS_MAX]
