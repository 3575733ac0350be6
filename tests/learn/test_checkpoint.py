"""Checkpoints: what comes back is what went in, and nothing but a whole one of ours is taken."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from farflung.learn.checkpoint import NotSaved, checkpoints, load_checkpoint, require_fit, save_checkpoint

TENSORS = {
    "weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "step": torch.tensor(7),
    "nothing": torch.zeros(0, 5),
}
STATE = {"step": 3, "loss": 2.5, "cursor": {"shard_0": 17}, "names": ["a", "b"], "none": None}


def test_tensors_and_state_come_back(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "run", TENSORS, STATE)
    loaded = load_checkpoint(tmp_path / "run")
    assert loaded.path == path and loaded.state == STATE
    assert list(loaded.tensors) == sorted(TENSORS)
    for name, tensor in TENSORS.items():
        assert loaded.tensors[name].dtype == tensor.dtype and torch.equal(loaded.tensors[name], tensor)


def test_the_tensors_are_a_safetensors_file_that_others_read(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, TENSORS, {})
    with safe_open(str(path / "tensors.safetensors"), framework="pt") as file:
        assert torch.equal(file.get_tensor("weight"), TENSORS["weight"])


def test_views_shared_memory_and_parameters_are_saved_as_they_are(tmp_path: Path) -> None:
    whole = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    shared = {
        "whole": torch.nn.Parameter(whole),
        "rows": whole[2:4],
        "turned": whole.T,
        "column": whole[:, 1],
        "again": whole,
    }
    save_checkpoint(tmp_path, shared, {})
    loaded = load_checkpoint(tmp_path).tensors
    assert all(torch.equal(loaded[name], tensor) for name, tensor in shared.items())


def test_the_newest_is_loaded_and_the_last_ones_are_kept(tmp_path: Path) -> None:
    for step in range(5):
        save_checkpoint(tmp_path, {}, {"step": step}, num_kept=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-00000004", "checkpoint-00000005"]
    assert load_checkpoint(tmp_path).state == {"step": 4}
    assert load_checkpoint(tmp_path / "checkpoint-00000004").state == {"step": 3}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-00000004", "checkpoint-00000005"]


def test_what_a_crash_left_is_no_checkpoint_and_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".unfinished-1"
    shutil.copytree(save_checkpoint(tmp_path / "elsewhere", TENSORS, STATE), left)
    assert checkpoints(tmp_path) == []
    save_checkpoint(tmp_path, {}, {})
    assert not left.exists() and len(checkpoints(tmp_path)) == 1


def test_no_checkpoint_is_a_sentence(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert checkpoints(folder) == []
        with pytest.raises(ValueError, match="there is no checkpoint in"):
            load_checkpoint(folder)


def overwrite_byte(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_damaged_or_foreign_one_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, TENSORS, STATE)
    good = tmp_path / "good"
    shutil.copytree(path, good)

    def refused(sentence: str) -> None:
        with pytest.raises(ValueError, match=sentence):
            load_checkpoint(tmp_path)
        shutil.rmtree(path)
        shutil.copytree(good, path)
        assert load_checkpoint(tmp_path).state == STATE

    overwrite_byte(path / "tensors.safetensors", -1)
    refused("is damaged")
    (path / "tensors.safetensors").write_bytes((good / "tensors.safetensors").read_bytes()[:-1])
    refused("is damaged")
    (path / "tensors.safetensors").unlink()
    refused("has no tensors.safetensors")
    (path / "state.json").unlink()
    refused("cannot be read")
    (path / "state.json").write_text('{"format": "farfl')
    refused("cannot be read")
    (path / "state.json").write_text('{"step": 1}')
    refused("states no format")
    described = json.loads((good / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**described, "format": "farflung checkpoint 2"}))
    refused("this version reads 'farflung checkpoint 1'")


@pytest.fixture
def files_of_one_megabyte() -> Iterator[None]:
    """Let the operating system refuse to write longer files, as a full disk does in the middle of one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("files_of_one_megabyte")
def test_a_disk_that_takes_no_more_leaves_the_old_ones(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, TENSORS, {"step": 1})
    with pytest.raises(NotSaved, match="make room") as caught:
        save_checkpoint(tmp_path, {"large": torch.zeros(10**6)}, {"step": 2}, num_kept=1)
    assert os.strerror(errno.EFBIG) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000001"]
    assert load_checkpoint(tmp_path).state == {"step": 1}


def test_what_cannot_fit_is_refused_before_it_is_written(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    endless = torch.zeros(1).expand(free)  # as long as four such disks, in four bytes of memory
    with pytest.raises(NotSaved, match="MB are free"):
        save_checkpoint(tmp_path, {"endless": endless}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotSaved, match="choose another folder"):
        save_checkpoint(tmp_path / "file", TENSORS, {})
    assert (tmp_path / "file").read_text() == "mine"


SAVER = """
import sys, torch
from pathlib import Path
from farflung.learn.checkpoint import save_checkpoint
tensors = {str(number): torch.full((100_000,), float(number)) for number in range(10)}
for step in range(1, 10_000):
    save_checkpoint(Path(sys.argv[1]), tensors, {"step": step}, num_kept=20)
    print(step, flush=True)
"""


@pytest.mark.parametrize("num_lines", [1, 3, 6])
def test_killed_at_any_moment_the_acknowledged_one_is_there(tmp_path: Path, num_lines: int) -> None:
    with subprocess.Popen([sys.executable, "-c", SAVER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as saver:
        assert saver.stdout is not None
        steps = [int(saver.stdout.readline()) for _ in range(num_lines)]
        saver.send_signal(signal.SIGKILL)
        steps += [int(line) for line in saver.stdout.read().split()]
    loaded = load_checkpoint(tmp_path)
    step = loaded.state["step"]
    assert isinstance(step, int) and steps[-1] <= step <= steps[-1] + 1
    assert all(torch.equal(loaded.tensors[str(number)], torch.full((100_000,), float(number))) for number in range(10))
    save_checkpoint(tmp_path, {}, {"step": -1}, num_kept=1)
    assert [path.name for path in tmp_path.iterdir()] == [f"checkpoint-{step + 1:08}"], "what a crash left is removed"


def test_a_checkpoint_is_whole_from_the_moment_it_appears(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", SAVER, str(tmp_path)], stdout=subprocess.DEVNULL) as saver:
        try:
            for step in range(2, 10):
                path = tmp_path / f"checkpoint-{step:08}"
                while not path.exists() and saver.poll() is None:
                    pass
                saver.send_signal(signal.SIGSTOP)
                assert load_checkpoint(path).state == {"step": step}
                saver.send_signal(signal.SIGCONT)
        finally:
            saver.kill()


def test_tensors_that_do_not_fit_are_named() -> None:
    expected = {"a": torch.zeros(2), "b": torch.zeros(3)}
    require_fit({"b": torch.ones(3), "a": torch.ones(2)}, expected, "it")
    with pytest.raises(ValueError, match=r"it does not fit this model \(a is float32 \[5\] instead of float32 \[2\]\)"):
        require_fit({"a": torch.zeros(5), "b": torch.zeros(3)}, expected, "it")
    with pytest.raises(ValueError, match=r"a is missing; c is not known here; b is float16 \[3\] instead"):
        require_fit({"c": torch.zeros(2), "b": torch.zeros(3, dtype=torch.float16)}, expected, "it")
    many = {str(number): torch.zeros(1) for number in range(9)}
    with pytest.raises(ValueError, match="and 6 more"):
        require_fit({}, many, "it")
