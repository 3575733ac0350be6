"""Serve, tune, pretrain and align language models on machines that are far apart."""

from importlib import import_module
from typing import TYPE_CHECKING

from farflung.world.version import __version__ as __version__

if TYPE_CHECKING:
    from farflung.apps.library import AutoModelForCausalLM as AutoModelForCausalLM
    from farflung.apps.low_communication.library import LowCommunication as LowCommunication
    from farflung.apps.low_communication.policy import DesLoc as DesLoc
    from farflung.apps.low_communication.policy import DiLoCo as DiLoCo
    from farflung.apps.low_communication.policy import LocalAdam as LocalAdam
    from farflung.model.adapters import LoraAdapter as LoraAdapter
    from farflung.model.peft_files import load_adapter as load_adapter
    from farflung.model.peft_files import save_adapter as save_adapter
    from farflung.model.source import ModelSource as ModelSource

_PUBLIC_NAMES: dict[str, str] = {
    "AutoModelForCausalLM": "farflung.apps.library",
    "DesLoc": "farflung.apps.low_communication.policy",
    "DiLoCo": "farflung.apps.low_communication.policy",
    "LocalAdam": "farflung.apps.low_communication.policy",
    "LoraAdapter": "farflung.model.adapters",
    "LowCommunication": "farflung.apps.low_communication.library",
    "ModelSource": "farflung.model.source",
    "load_adapter": "farflung.model.peft_files",
    "save_adapter": "farflung.model.peft_files",
}
"""Public name -> module that defines it; the module is imported on first use, so `import farflung` loads no torch."""


def __getattr__(name: str) -> object:
    """Import the module behind a public name; AttributeError for any other name (PEP 562)."""
    if name not in _PUBLIC_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC_NAMES[name]), name)


def __dir__() -> list[str]:
    """List the public names too, imported or not."""
    return sorted([*globals(), *_PUBLIC_NAMES])
