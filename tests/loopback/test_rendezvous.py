"""The founder of a swarm dies for good; the last file of this folder, for it does not come back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from farflung.apps.library import AutoModelForCausalLM
from tests.loopback.fleet import Fleet, wait_until
from tests.loopback.test_departures import long
from tests.loopback.test_kill import PROMPT, At

pytestmark = pytest.mark.loopback


def test_the_founder_is_killed_and_the_swarm_goes_on(fleet: Fleet, folder: Path, model: Any, whole: Any) -> None:
    """Any rendezvous node alive is enough: sessions go on, and clients, servers and status still come in."""
    expected = whole.generate(PROMPT, **long(30))
    wait_until(lambda: fleet.num_meetings > 2, "the founder's ticket names other rendezvous nodes")
    at = At({6: fleet.founder.kill})
    output = model.generate(PROMPT, logits_processor=[at], **long(30))
    assert not at.actions and not fleet.founder.is_alive
    assert torch.equal(output, expected)

    newcomer: Any = AutoModelForCausalLM.from_pretrained(str(folder), swarm=fleet.ticket())
    assert torch.equal(newcomer.generate(PROMPT, **long(30)), expected)

    joining = fleet.serve("0:4")
    fleet.wait_serving(joining)
    wait_until(lambda: joining.peer in model._blocks.view.servers(), "the old client hears of the new server")
    wait_until(lambda: {server.peer for server in fleet.servers} <= shown(fleet), "the status shows all servers")


def shown(fleet: Fleet) -> set[str]:
    """Servers of which a newcomer is told."""
    status = fleet.start("status", "--json", "--join", fleet.ticket())
    assert status.status == 0, status.text
    return {server["peer"] for server in json.loads(status.text)["servers"]}
