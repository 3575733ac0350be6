"""Starts `farflung` processes quickly: everything is imported once, then every order forks one process.

Orders and answers are those of `farflung.apps.fork_server`, on standard input and output. What runs in a fork is the
command line's own `main`, or a script if the first argument names one.
"""

import importlib
import os
import runpy
import sys

from farflung.apps import cli
from farflung.apps.fork_server import serve

IMPORTED = (
    "farflung.apps.serve",
    "farflung.apps.terminal",
    "farflung.apps.status",
    "farflung.apps.library",
    "farflung.apps.pretrain.job",
    "farflung.apps.runs.command",
    "farflung.apps.runs.take_seat",
    "transformers.models.llama.modeling_llama",
)
command_line = cli.main


def main() -> None:
    """Become what `sys.argv` says."""
    if sys.argv[1].endswith(".py"):
        del sys.argv[0]
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        command_line()


if __name__ == "__main__":
    for name in IMPORTED:
        importlib.import_module(name)
    cli.main = main
    orders, answers = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    serve(orders, answers)
