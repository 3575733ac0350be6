"""Which version of the program this is; alone in its module, so that any layer may say it."""

__version__ = "0.1.0"
