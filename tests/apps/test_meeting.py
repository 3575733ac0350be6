"""A run's lead listens where it did before, unless it is told otherwise or somebody else listens there now."""

import asyncio
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from farflung.apps.runs.meeting import PLACE_FILE, open_lead
from farflung.apps.wiring import Place


def opened(place: Place) -> tuple[tuple[str, ...], Place, list[str]]:
    """Endpoints, place and sentences of a lead that opens there, and leaves."""

    async def lead() -> tuple[tuple[str, ...], Place, list[str]]:
        told: list[str] = []
        node, chosen = await open_lead(place, "run", told.append)
        await node.close()
        return node.node.endpoints, chosen, told

    return asyncio.run(lead())


def test_a_lead_is_found_where_it_was(tmp_path: Path) -> None:
    place = Place(home=tmp_path, is_rendezvous=True)
    first, _, told = opened(place)
    assert not told and opened(place)[0] == first
    port = int(first[0].rpartition(":")[2])
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        elsewhere, _, told = opened(place)
        assert elsewhere != first and "the port is in use" in told[0] and "new ticket" in told[0]
        with pytest.raises(ValueError, match="the port is in use"):
            opened(replace(place, port=port))
    _, chosen, _ = opened(replace(place, advertise=("example.org:9",), port=port))
    assert chosen.port == port
    assert opened(place)[0] == ("example.org:9",)


def test_a_damaged_place_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / PLACE_FILE).write_text("{")
    with pytest.raises(ValueError, match="delete it"):
        opened(Place(home=tmp_path, is_rendezvous=True))
