"""How a step's answers are dealt to the ranks of a trainer."""

import random

from farflung.systems.alignment.ranks import deal


def test_every_answer_is_computed_once_and_ranks_have_about_the_same_to_do() -> None:
    stream = random.Random(0)
    for num_ranks in (1, 2, 3, 8):
        lengths = [stream.choice((3, 50, 400)) for _ in range(64)]
        dealt = deal(lengths, num_ranks)
        assert sorted(place for places in dealt for place in places) == list(range(64))
        assert all(places == sorted(places) for places in dealt)
        loads = [sum(lengths[place] for place in places) for places in dealt]
        assert max(loads) - min(loads) <= 400
    assert deal([5, 5], 3) == [[0], [1], []]
