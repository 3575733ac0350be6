"""Run files that a plan leaves: regions and links from the plan's sites, and how the run is begun."""

from collections.abc import Sequence
from typing import Any

import msgspec

from farflung.apps.plan.plan_file import PlanFile
from farflung.apps.plan.stand_in import WorkerPlace
from farflung.apps.runs.sites import RegionSettings
from farflung.apps.runs.toml_text import toml_text

MODEL_PATH = "MODEL"
"""Stands for a model that the plan gives by its numbers alone."""


def sites_tables(
    plan: PlanFile, places: Sequence[WorkerPlace], first: str = "", *, num_here: int = 1
) -> dict[str, Any]:
    """[[regions]] and [[links]] of the workers' sites; the lead is in the first, which is `first` or the plan's.

    `num_here`: workers on the lead's own machine; all others join from theirs.
    """
    known = [place.site for place in places]
    sites = list(dict.fromkeys([first, *known] if first else known))
    regions = [
        {
            "name": site,
            "is_remote": number > 0,
            "workers": [
                {"speed": round(place.speed, 4), **({"is_remote": True} if number == 0 and at >= num_here else {})}
                for at, place in enumerate(place for place in places if place.site == site)
            ],
        }
        for number, site in enumerate(sites)
    ]
    links = [
        {
            "between": [one, other],
            "bandwidth_mbit": plan.link(one, other).bandwidth_mbit,
            "latency_ms": plan.link(one, other).round_trip_ms / 2,
        }
        for at, one in enumerate(sites)
        for other in sites[at + 1 :]
    ]
    return {"regions": regions, "links": links}


def run_text(tables: dict[str, Any], *missing: str) -> str:
    """The file, with what to type on which machine, and what is `missing`, before it."""
    regions = [msgspec.convert(region, type=RegionSettings) for region in tables["regions"]]
    home = regions[0]
    remarks = [f"# farflung {tables['run']['kind']} run.toml --host 0.0.0.0     on a machine of {home.name}"]
    for region in regions:
        if any(region.are_remote):
            which = "each other machine" if region is home else "each machine"
            remarks.append(f"# farflung join TICKET --region {region.name}     on {which} of {region.name}")
    return "\n".join([*remarks, *(f"# {one}" for one in missing), "", toml_text(tables)])
