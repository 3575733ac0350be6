"""The program of every rank of a worker's group but the first."""

import sys

from farflung.apps.parents import tie_to_parent
from farflung.apps.processes import end_at_once, leave
from farflung.apps.runs.group import meet


def main(store: str, rank: int, num_ranks: int) -> None:
    """A process that the first rank has started."""
    tie_to_parent()
    group = meet(store, rank, num_ranks)
    end_at_once()
    group.follow()
    group.end()
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
