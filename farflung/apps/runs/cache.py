"""Where this machine keeps what all runs can use: tokens, tokenizers."""

import os
from pathlib import Path

from farflung.runtime.home import default_home

CACHE_VARIABLE = "FARFLUNG_CACHE"


def cache_of_this_machine() -> Path:
    """The folder that FARFLUNG_CACHE names, else one in the home."""
    return Path(os.environ[CACHE_VARIABLE]) if os.environ.get(CACHE_VARIABLE) else default_home() / "cache"
