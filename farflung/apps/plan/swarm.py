"""The plan of a running swarm: joined as a client for a moment, its directory gives what a plan file leaves out."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from farflung.apps.announced import AnnouncedServers
from farflung.apps.machines import announced_machines
from farflung.apps.plan.measured import PLACES, Seen, model_served, places_of
from farflung.apps.plan.plan_file import LinkSettings, PlanFile, plan_of
from farflung.apps.plan.sizes import sizes_of
from farflung.apps.plan.words import said
from farflung.apps.runs.reader import read, read_table
from farflung.apps.wiring import Connection

USUAL_GOAL = {"kind": "serve"}
"""Where no file and no --set says another."""


def plan_of_swarm(ticket: str, tables: Mapping[str, Any]) -> PlanFile:
    """Join, look, and complete the tables of a plan; its places are those of the swarm.

    Raises:
        ValueError: a bad ticket, a mistake in the tables, or a swarm of which nothing can be planned.
        FarflungError: nobody of the swarm answers.
    """
    with Connection(ticket) as connection:
        return completed(tables, look(connection))


def look(connection: Connection) -> Seen:
    """What the directory says now."""

    return connection.bridge.call(lambda: look_now(connection))


def look_now(connection: Connection) -> Seen:
    """The same for whoever is on the connection's loop."""
    node = connection.node
    view = dict(node.member.view)
    servers = dict(AnnouncedServers(node.member)())
    return Seen(swarm=node.node.ticket.swarm, view=view, servers=servers, machines=announced_machines(view))


def completed(tables: Mapping[str, Any], seen: Seen) -> PlanFile:
    """A plan with the places of a swarm, whose model is planned for where the tables name none.

    Raises:
        ValueError: as `plan_of_swarm`.
    """
    aside = [name for name in PLACES if name in tables]
    remarks = [said("left aside", sections=", ".join(aside))] if aside else []
    model = read_table(tables["model"], "model") if "model" in tables else None
    if model is None:
        served = model_served(seen)
        model, remarks = served.tables, [*remarks, *served.remarks]
    assumed = read(LinkSettings, tables.get("default_link", {}), "default_link")
    places = places_of(seen, sizes_of(model).block_parameters, assumed)
    plan = plan_of({"goal": {**USUAL_GOAL, **tables.get("goal", {})}, **_kept(tables), **places.tables, "model": model})
    return replace(plan, remarks=(*places.remarks, *remarks))


def _kept(tables: Mapping[str, Any]) -> dict[str, Any]:
    return {name: table for name, table in tables.items() if name not in (*PLACES, "goal")}
