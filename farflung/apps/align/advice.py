"""`farflung align --advise`: what would make a run faster, from the log that it has left."""

from pathlib import Path

from farflung.apps.align.run_file import ALIGN, RunFile
from farflung.apps.runs.history import History, read_history
from farflung.apps.runs.logs import LOG_NAME
from farflung.systems.alignment.overlap import Measured, advise

NUM_SHOWN = 3


def measured_of(run: RunFile, history: History) -> Measured:
    """What the log tells.

    Raises:
        ValueError: it tells too little.
    """
    points = list(history.latest.values())
    trainer = next((point for point in points if "step" in point.values), None)
    speeds = [one.values["answers_per_second"] for one in points if one.values.get("answers_per_second")]
    if trainer is None or not speeds or not trainer.seconds:
        raise ValueError("the run's log tells too little yet: let it make some steps with its workers first")
    num_steps = trainer.values["step"]
    busy_seconds = max(0.0, trainer.seconds - trainer.waiting_seconds) / num_steps
    sync_seconds = trainer.values.get("waited_for_weights", 0.0) / num_steps
    config = run.conversation
    num_answers = config.prompts_per_step * config.answers_per_prompt
    return Measured(busy_seconds, sync_seconds, num_answers, tuple(speeds), config.staleness_max)


def print_advice(path: Path | None) -> None:
    """Say what to change, best first.

    Raises:
        ValueError: there is no run file, or no log beside it that tells enough.
    """
    if path is None:
        raise ValueError("--advise reads what a run has measured: give the run.toml in its folder")
    run = ALIGN.load(path)
    if run.sync.mode == "colocated":
        raise ValueError("a colocated run overlaps nothing: try --mode async")
    measured = measured_of(run, read_history(path.parent / LOG_NAME))
    sampling = measured.answers_per_step / sum(measured.answers_per_second)
    print(
        f"a step keeps the trainer busy for {measured.step_seconds:.2f} s, sampling its {measured.answers_per_step} "
        f"answers takes {len(measured.answers_per_second)} workers {sampling:.2f} s, new weights arrive after "
        f"{measured.sync_seconds:.2f} s"
    )
    found = advise(measured)
    for one in found[:NUM_SHOWN]:
        print(one.sentence(measured))
    if not found:
        print("neither more workers nor more staleness would gain much: the trainer is what takes the time")
