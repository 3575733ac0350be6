"""What a run has whose file names no model: settings under which each method learns the example task in a minute."""

from typing import Any

PRIVATE = "onebyte with [method.privacy]"
"""Noise is shared out over the slots of a round, so that fewer of them are heard better."""
FIRST_TRIES: dict[str, dict[str, dict[str, Any]]] = {
    "onebyte": {
        "training": {"rounds": 120},
        "method": {"learning_rate": 4e-2, "decay": "linear", "is_exact": True},
    },
    PRIVATE: {
        "training": {"rounds": 120},
        "method": {"learning_rate": 1.4e-2, "num_slots": 8},
    },
    "mezo": {"training": {"rounds": 600}, "method": {"learning_rate": 3e-4}},
    "adam": {"training": {"rounds": 60}, "method": {"learning_rate": 1e-3}},
    "fedavg-lora": {"training": {"rounds": 4}, "method": {"learning_rate": 3e-3}},
    "lora": {"training": {"rounds": 60}, "method": {"learning_rate": 3e-3}},
    "prompt": {"training": {"rounds": 120}, "method": {"learning_rate": 3e-2}},
}
"""By method: what the run file leaves open of [training] and [method]."""


def with_first_try(tables: dict[str, Any], method: str) -> dict[str, Any]:
    """The tables of a run file, with what they leave open."""
    filled = dict(tables)
    given = tables.get("method", {})
    if method == "onebyte" and isinstance(given, dict) and "privacy" in given:
        method = PRIVATE
    for section, values in FIRST_TRIES.get(method, {}).items():
        given = tables.get(section, {})
        if isinstance(given, dict):  # anything else is refused where it is read
            filled[section] = {**values, **given}
    return filled
