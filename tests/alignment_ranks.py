"""Ranks of a trainer that are compared with a process alone: `... RUN.toml FOLDER NUM_RANKS`.

The first one writes the greatest distances of what came of both to FOLDER/distances.json, by case and what it is.
"""

import json
import multiprocessing
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from farflung.apps.align.group_learner import GroupLearner, rank_learner
from farflung.apps.align.materials import Materials
from farflung.apps.align.run_file import ALIGN
from farflung.apps.runs.group import End, Group, meet
from farflung.learn.parameters import Tensors, copies, fingerprint
from farflung.systems.alignment import rollouts
from farflung.systems.alignment.colocated import install, sample
from farflung.systems.alignment.learner import PolicyLearner

CASES = {
    "whole, ddp": ["training.parallelism=ddp"],
    "whole, fsdp": ["training.parallelism=fsdp"],
    "adapter, ddp": ["training.parallelism=ddp", "model.adapter_rank=2"],
    "adapter, fsdp": ["training.parallelism=fsdp", "model.adapter_rank=2"],
}
AnyLearner = PolicyLearner | GroupLearner
Steps = Sequence[Sequence[rollouts.Group]]


def materials_of(path: Path, overrides: Sequence[str]) -> Materials:
    # Adam divides by the size of a gradient, so where one is next to nothing its rounding alone decides the step.
    return Materials.gather(ALIGN.load(path, ["training.learning_rate=1e-4", *overrides]))


def alone(materials: Materials) -> PolicyLearner:
    """Of this process, whatever group it is in."""
    return PolicyLearner(materials.model(), materials.run.learning, group_size=4)


def steps_of(materials: Materials) -> Steps:
    """Batches of all kinds: whole groups, lost members, less answers than ranks, and nothing to learn from."""
    policy = materials.policy()
    install(policy, 0, alone(materials).snapshot())
    config = replace(materials.run.conversation, answers_per_prompt=4)
    groups = [one for one in sample(policy, materials.environment(), range(20), config) if len(set(one.rewards)) > 1]
    equal = rollouts.Group(groups[1].prompt, groups[1].rollouts, (0.5,) * 4)
    alike = [rollouts.Group(one.prompt, one.rollouts, (1.0,) * 4) for one in groups[:2]]
    return [
        groups[:3],
        [survivors(groups[3], 3), equal, groups[4]],
        [survivors(groups[5], 2), equal],
        alike,
        groups[6:9],
    ]


def survivors(group: rollouts.Group, count: int) -> rollouts.Group:
    """What is left of a group that has lost members; their rewards differ."""
    order = sorted(range(len(group.rewards)), key=lambda member: group.rewards[member])
    kept = sorted([*order[: count - 1], order[-1]])
    return rollouts.Group(
        group.prompt, tuple(group.rollouts[one] for one in kept), tuple(group.rewards[one] for one in kept)
    )


def work(learner: AnyLearner, steps: Steps) -> dict[str, Any]:
    """Everything that a trainer does with a learner."""
    found: dict[str, Any] = {"metrics": [dict(learner.step(groups)) for groups in steps[:2]]}
    tensors, state = learner.state()
    tensors = copies(tensors)
    found["metrics"].append(dict(learner.step(steps[2])))
    found["middle"] = learner.snapshot()
    found["metrics"] += [dict(learner.step(groups)) for groups in steps[3:]]
    found["end"] = learner.snapshot()
    found["state"] = copies(learner.state()[0])
    found["scores"] = learner.score(steps[0][0].rollouts[0].prompt_tokens)
    found["alarms"] = [alarm[:20] for alarm in learner.alarms]
    learner.restore(tensors, state)
    learner.step(steps[2])
    assert fingerprint(learner.snapshot()) == fingerprint(found["middle"]), "a step that is made again has other bits"
    found["version"] = learner.version
    return found


def distances_of(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float]:
    """By what it is."""
    assert one["version"] == other["version"] and one["alarms"] == other["alarms"]
    found = {name: farthest(one[name], other[name]) for name in ("middle", "end", "state")}
    found["scores"] = max(abs(a - b) for a, b in zip(one["scores"], other["scores"], strict=True))
    for mine, theirs in zip(one["metrics"], other["metrics"], strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            if mine[name] == mine[name]:  # NaN: there has been nothing to compare
                found[name] = max(found.get(name, 0.0), abs(mine[name] - theirs[name]))
    return found


def farthest(one: Tensors, other: Tensors) -> float:
    """Greatest distance of two values."""
    assert [(name, tensor.shape, tensor.dtype) for name, tensor in one.items()] == [
        (name, tensor.shape, tensor.dtype) for name, tensor in other.items()
    ]
    return max(float((tensor - other[name]).abs().max()) for name, tensor in one.items())


def by_orders(group: Group, materials: Materials) -> dict[str, float]:
    """The first rank is asked, as a trainer asks it, and tells the others."""
    steps = steps_of(materials)
    together = work(GroupLearner(group, materials), steps)
    group.tell(End())
    return distances_of(work(alone(materials), steps), together)


def in_parts(group: Group, materials: Materials) -> dict[str, float]:
    """Few tokens at once and two passes, for which a run file has no key: every rank calls the same."""
    if group.rank:
        steps: Any = group.hear()
    else:
        steps = steps_of(materials)
        group.tell(steps)
    both = [rank_learner(group, materials), alone(materials)]
    for learner in both:
        learner.config = replace(learner.config, tokens_at_once=24, passes=2)
    together, single = [work(learner, steps) for learner in both]
    if group.rank:
        return {}
    found = distances_of(single, together)
    del found["drift"]  # of the first part, which is another one
    return found


def compare(group: Group, path: Path, folder: Path) -> None:
    """All cases; every rank takes part."""
    found: dict[str, dict[str, float]] = {}
    for name, overrides in CASES.items():
        if group.rank:
            group.follow()
        else:
            found[name] = by_orders(group, materials_of(path, overrides))
    for parallelism in ("ddp", "fsdp"):
        materials = materials_of(path, [f"training.parallelism={parallelism}"])
        found[f"in parts, {parallelism}"] = in_parts(group, materials)
    if not group.rank:
        (folder / "distances.json").write_text(json.dumps(found))


def main(path: Path, folder: Path, num_ranks: int) -> None:
    # Processes of their own, as those of a trainer are, without loading everything in each of them.
    fork = multiprocessing.get_context("fork").Process
    others = [fork(target=take_rank, args=(path, folder, rank, num_ranks)) for rank in range(1, num_ranks)]
    for process in others:
        process.start()
    take_rank(path, folder, 0, num_ranks)
    for process in others:
        process.join()
        assert process.exitcode == 0, "a rank has failed"


def take_rank(path: Path, folder: Path, rank: int, num_ranks: int) -> None:
    group = meet(str(folder / "store"), rank, num_ranks)
    compare(group, path, folder)
    group.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
