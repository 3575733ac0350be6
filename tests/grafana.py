"""What Prometheus would find at an address, and what the dashboard of deploy/ asks that is not there."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

Samples = dict[str, list[dict[str, str]]]
"""The labels of every sample, by its name."""


def read_dashboard() -> dict[str, Any]:
    """As Grafana takes it."""
    return json.loads((Path(__file__).parents[1] / "deploy" / "grafana.json").read_text())


def scraped(url: str) -> tuple[Samples, dict[str, float]]:
    """What is told there; see `samples_in`."""
    answer = httpx.get(url, timeout=60)
    assert answer.status_code == 200, answer.text
    return samples_in(answer.text)


def samples_in(text: str) -> tuple[Samples, dict[str, float]]:
    """Samples, and the sum of their values by name."""
    samples: Samples = {}
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append(sample.labels)
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return samples, sums


def unknown(dashboard: dict[str, Any], served: list[Samples]) -> list[str]:
    """Names and labels that the dashboard asks for and nobody tells."""
    labels: dict[str, set[str]] = {}
    for samples in served:
        for name, all_labels in samples.items():
            labels.setdefault(name, {"instance"}).update(*all_labels)
    missing: list[str] = []
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            names = re.findall(r"\b(?:farflung|process)_\w+", target["expr"])
            asked = re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", target["expr"])))
            shown = re.findall(r"{{(\w+)}}", target["legendFormat"])
            missing += [name for name in names if name not in labels]
            missing += [
                f"{name}: {label}"
                for name in names
                for label in (*asked, *shown)
                if name in labels and label not in labels[name]
            ]
            assert names, f"{panel['title']} asks for nothing"
    return missing
