"""A plan of a running swarm: its machines and its model, from the records of real servers."""

import json
from pathlib import Path

import pytest

from tests.loopback.fleet import Fleet

pytestmark = pytest.mark.loopback

SHORT = ("--set", "goal.prompt_tokens=8", "--set", "goal.answer_tokens=8", "--set", "goal.tokens_per_second=0.001")


def test_the_swarm_that_is_joined_is_planned_for(fleet: Fleet, tmp_path: Path) -> None:
    answer = tmp_path / "plan.json"
    program = fleet.start("plan", "--join", fleet.ticket(), "--json", str(answer), *SHORT)
    assert program.status == 0, program.text
    told = json.loads(answer.read_text())
    assert told["goal"] == "serve" and told["outcomes"][0]["meets_goal"]
    assert told["outcomes"][0]["confidence"].startswith("good")
    said = " ".join(told["assumptions"])
    num_servers = 1 + len(fleet.servers)
    assert f"Sites (1), machines ({num_servers}) and links are those of the swarm" in said
    assert f"The model is the one that is served, {fleet.model.name}" in said
    assert f"{num_servers} machines name no site" in said and "do not tell" not in said
