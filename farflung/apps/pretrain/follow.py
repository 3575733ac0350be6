"""Every rank of a worker's group but the first: it does what the first one tells."""

import sys

import torch
from transformers import AutoModelForCausalLM

from farflung.apps.pretrain.group import Group, meet
from farflung.apps.pretrain.orders import Begin, Order
from farflung.apps.pretrain.rank import RankTrainer
from farflung.apps.processes import tie_to_parent


def follow(group: Group) -> None:
    """Take part until the first rank says that it is over.

    Raises:
        CommandFailed: the first rank is gone.
    """
    begin = group.hear()
    if not isinstance(begin, Begin):
        return
    # Any weights: those of the first rank come next.
    model = AutoModelForCausalLM.from_config(begin.config, dtype=torch.float32)
    trainer = RankTrainer(group, begin, model, None)
    while isinstance(order := group.hear(), Order):
        trainer.perform(order)


def main(store: str, rank: int, num_ranks: int) -> None:
    """A process that the first rank has started."""
    tie_to_parent()
    group = meet(store, rank, num_ranks)
    follow(group)
    group.end()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
