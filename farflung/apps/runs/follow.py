"""The program of every rank of a worker's group but the first."""

import sys

from farflung.apps.processes import tie_to_parent
from farflung.apps.runs.group import meet


def main(store: str, rank: int, num_ranks: int) -> None:
    """A process that the first rank has started."""
    tie_to_parent()
    group = meet(store, rank, num_ranks)
    group.follow()
    group.end()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
