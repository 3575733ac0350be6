"""Fine-tuning with real processes: kill -9 of a worker, the sequencer and its standby loses nothing, forks nothing."""

import contextlib
import random
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from farflung.apps.cli import app
from farflung.apps.finetune.job import Finetuning
from farflung.apps.runs.command import Wish, do_run
from farflung.systems.onebyte.records import Round, encode_record
from tests.apps.tunings import example, write_tuning
from tests.loopback.finetuning import (
    Seen,
    join,
    journal,
    look,
    require_one_state,
    summary,
    told_rounds,
    wait_measured,
    wait_rounds,
)
from tests.loopback.fleet import wait_until
from tests.loopback.pretraining import SECONDS_MAX, Command

pytestmark = pytest.mark.loopback

WORKERS = ["east-worker-0", "west-worker-1"]
VICTIMS = ["west-worker-1", "east-sequencer", "west-standby"]
LIFE_SECONDS_MIN = 11.0
"""A seat that ends sooner, again and again, is taken for one that cannot work."""


def kill(command: Command, victim: str, *, life_seconds_min: float = 0.0) -> None:
    """`kill -9` of whoever sits there now, or as soon as somebody does."""

    def was_killed() -> bool:
        assert command.process.poll() is None, command.output.read_text()
        try:
            process = command.seat(victim)
            if time.time() - process.create_time() < life_seconds_min:
                return False
            process.send_signal(signal.SIGKILL)
        except (AssertionError, psutil.NoSuchProcess):
            return False
        return True

    wait_until(was_killed, f"somebody sits on {victim}", SECONDS_MAX)


def require_verified(command: Command) -> None:
    """`farflung journal` finds the file right, and makes the run's model of it."""
    path, target = command.folder / "journal.flj", command.folder / "replayed"
    said = CliRunner().invoke(app, ["journal", "verify", str(path), "--base", str(example().model)])
    assert said.exit_code == 0, said.output
    said = CliRunner().invoke(app, ["journal", "replay", str(path), "--base", str(example().model), "-o", str(target)])
    assert said.exit_code == 0 and summary(command.folder)["state"] in " ".join(said.output.split())
    models = [
        AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (target, command.folder / "model")
    ]
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(tensor, models[1][name]) for name, tensor in models[0].items())


def require_kept(seen: list[Seen], command: Command) -> None:
    """All that was ever told is in the journal; a byte that was otherwise would be found."""
    section = journal(command)
    final = [encode_record(record) for record in section.records]
    assert [one.num_rounds for one in seen if not one.is_kept(section.header, final)] == []
    final[0] = final[0][:-1] + bytes([final[0][-1] ^ 1])
    assert not seen[-1].is_kept(section.header, final)


def undisturbed_state(path: Path, command: Command) -> str:
    """Of the same run in virtual time, where nothing happens to anybody."""
    folder = command.folder.with_name("undisturbed")
    do_run(Finetuning(), Wish(path=path, overrides=(f'run.folder="{folder}"',), is_simulated=True))
    return summary(folder)["state"]


def start(tmp_path: Path, commands: list[Command], rounds: int, *arguments: str) -> tuple[Path, Command]:
    """A run over links as its file says, whose rounds wait for all of their slots: its bytes follow from the file."""
    path = write_tuning(tmp_path, rounds=rounds, method="round_seconds_max = 900.0")
    command = Command(tmp_path, str(path), "--set", "run.is_shaped=true", *arguments, kind="finetune")
    commands.append(command)
    return path, command


def killed(tmp_path: Path, commands: list[Command], rounds: int, victims: list[str], seed: int, life: float) -> None:
    stream = random.Random(seed)
    path, command = start(tmp_path, commands, rounds)
    wait_measured(command, WORKERS)
    seen: list[Seen] = []
    for victim in victims:
        wait_rounds(command, told_rounds(command) + 1 + stream.randrange(2))
        seen.append(look(command))
        kill(command, victim, life_seconds_min=life)
    assert command.wait() == 0, command.output.read_text()
    require_one_state(command, rounds)
    require_kept(seen, command)
    for victim in set(victims):
        assert command.text.count(f"{victim} ended with status -9 and is started again") == victims.count(victim)
    require_verified(command)
    assert summary(command.folder)["state"] == undisturbed_state(path, command)


def test_kills_lose_nothing_and_fork_nothing(tmp_path: Path, commands: list[Command]) -> None:
    killed(tmp_path, commands, 24, VICTIMS, seed=0, life=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_ten_kills_in_any_order(seed: int, tmp_path: Path, commands: list[Command]) -> None:
    victims = random.Random(seed).choices([*VICTIMS, "east-witness", "east-worker-0"], k=10)
    killed(tmp_path, commands, 240, victims, seed, LIFE_SECONDS_MIN)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, commands: list[Command]) -> None:
    path, first = start(tmp_path, commands, 24)
    wait_rounds(first, 5)
    first.send(signal.SIGINT)
    assert first.wait() == 130, first.output.read_text()
    assert f"Go on with: farflung finetune {first.folder / 'run.toml'} --resume" in first.text
    seen = look(first)
    assert seen.num_rounds in range(5, 24)
    second = Command(tmp_path, str(first.folder / "run.toml"), "--resume", kind="finetune")
    commands.append(second)
    assert second.wait() == 0, second.output.read_text()
    require_one_state(second, 24)
    require_kept([seen], second)
    assert summary(second.folder)["state"] == undisturbed_state(path, second)


@pytest.mark.slow
def test_a_machine_with_the_standby_may_be_lost(tmp_path: Path, commands: list[Command]) -> None:
    path = write_tuning(tmp_path, rounds=300)
    far = '{name="far", workers=1, is_remote=true, servers=["standby"]}'
    places = ["--set", f'regions=[{{name="here", workers=1}}, {far}]', "--set", "links=[]"]
    command = Command(tmp_path, str(path), *places, kind="finetune")
    commands.append(command)
    wait_until(lambda: "far-standby is waited for" in command.text, "the run has begun", SECONDS_MAX)
    joined = [join(tmp_path, command, "standby", "--seat", "1"), join(tmp_path, command, "worker")]
    try:
        wait_measured(command, ["here-worker-0", "far-worker-1"])
        wait_rounds(command, told_rounds(command) + 3)
        for process in joined:
            process.kill()
        assert command.wait() == 0, command.output.read_text()
    finally:
        for process in joined:
            process.kill()
            process.wait()
    assert journal(command).ledger.is_closed and summary(command.folder)["rounds"] == 300


@pytest.mark.slow
def test_who_joins_in_mid_run_comes_to_the_same_weights(tmp_path: Path, commands: list[Command]) -> None:
    """And goes on with it, while all others stand still for longer than they are waited for."""
    path, command = start(tmp_path, commands, 40)
    wait_measured(command, WORKERS)
    wait_rounds(command, 5)
    frozen = [command.seat(worker) for worker in WORKERS]
    for process in frozen:
        process.send_signal(signal.SIGSTOP)
    joiner = join(tmp_path, command, "joiner")
    try:
        wait_measured(command, ["east-worker-2"])
        for process in frozen:
            process.send_signal(signal.SIGCONT)
        assert command.wait() == 0, command.output.read_text()
        assert joiner.wait(SECONDS_MAX) == 0
    finally:
        joiner.kill()
        for process in frozen:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
    require_one_state(command, 40)
    assert summary(command.folder)["state"] == undisturbed_state(path, command)


@pytest.mark.slow
def test_one_two_and_four_processes_write_the_same_rounds(tmp_path: Path, commands: list[Command]) -> None:
    written: list[tuple[str, list[bytes]]] = []
    for workers in (1, 2, 4):
        folder = tmp_path / str(workers)
        folder.mkdir()
        regions = ["--set", f'regions=[{{name="here", workers={workers}}}]', "--set", "links=[]"]
        path = write_tuning(folder, rounds=8, method="round_seconds_max = 900.0")
        command = Command(folder, str(path), *regions, kind="finetune")
        commands.append(command)
        assert command.wait() == 0, command.output.read_text()
        require_one_state(command, 8)
        assert len(summary(command.folder)["slots"]) == workers
        rounds = [record for record in journal(command).records if isinstance(record, Round)]
        codes = [b"".join(part.codes for part in sorted(one.parts, key=lambda part: part.first_slot)) for one in rounds]
        written.append((summary(command.folder)["state"], codes))
    assert written[0] == written[1] == written[2]
