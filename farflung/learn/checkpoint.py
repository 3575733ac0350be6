"""Checkpoints: named tensors and the state of a run in one folder, which is there whole or not at all.

    RUN/checkpoint-00000007/tensors.safetensors      all tensors by name
    RUN/checkpoint-00000007/state.json               format, the run's state, size and SHA-256 of the tensors

A checkpoint is written beside its place under a hidden name, synced, and renamed: a crash or a full disk at any moment
leaves those before it as they were. One process at a time writes to a run's folder.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from safetensors import SafetensorError, TensorSpec, safe_open, serialize_file

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

FORMAT = "farflung checkpoint 1"
TENSORS_FILE = "tensors.safetensors"
STATE_FILE = "state.json"
NAME = re.compile(r"^checkpoint-(\d{8,})$")
UNFINISHED = ".unfinished-"
MARGIN_BYTES = 1 << 20
"""What headers, the state and the file system's own records may take beside the tensors."""
NAMES_SHOWN_MAX = 3


class NotSaved(ValueError):
    """The disk did not take a checkpoint; those before it are untouched and the run may go on."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was saved."""

    path: Path
    tensors: dict[str, torch.Tensor]
    """On the processor, in order of their names."""
    state: dict[str, Json]


def save_checkpoint(
    folder: Path, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Json], *, num_kept: int = 3
) -> Path:
    """Save a new checkpoint into a run's folder and remove all but the newest `num_kept`; where it lies.

    Once this has returned, it survives a crash. Tensors may lie on any device, be views, and share memory.

    Raises:
        NotSaved: the disk is full, fails, or must not be written to.
    """
    assert num_kept >= 1, "the checkpoint just written is kept"
    unfinished = folder / f"{UNFINISHED}{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(folder)
        _refuse_full_disk(folder, sum(tensor.nbytes for tensor in tensors.values()))
        unfinished.mkdir()
        _write_tensors(unfinished / TENSORS_FILE, tensors)
        _write_state(unfinished, state)
        _sync(unfinished)
        target = folder / f"checkpoint-{_next_number(folder):08}"
        unfinished.rename(target)
        _sync(folder)
        _remove_oldest(folder, num_kept)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise NotSaved(
            f"no checkpoint could be written to {folder} ({_reason(error)}): make room or choose another folder; "
            f"those already there are as they were"
        ) from error
    return target


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder, oldest first; none where there is no such folder."""
    found = [path for path in folder.iterdir() if NAME.match(path.name)] if folder.is_dir() else []
    return sorted(found, key=_number)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Load a checkpoint, or the newest one of a run's folder.

    Raises:
        ValueError: there is none, it is not ours, or it is damaged.
    """
    path = folder if NAME.match(folder.name) or (folder / STATE_FILE).is_file() else _newest(folder)
    description = _read_description(path)
    _check_tensors(path, description)
    file: Any = safe_open(str(path / TENSORS_FILE), framework="pt")  # its stub has no types
    with file:
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    return Checkpoint(path, tensors, description["state"])


def require_fit(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], what: str) -> None:
    """Refuse tensors that differ from the expected ones in name, shape or dtype.

    Raises:
        ValueError: names the first differences; `what` says what was found, such as a checkpoint's path.
    """
    differences = [f"{name} is missing" for name in expected if name not in found]
    differences += [f"{name} is not known here" for name in found if name not in expected]
    for name, tensor in expected.items():
        if name in found and _form(found[name]) != _form(tensor):
            differences.append(f"{name} is {_form(found[name])} instead of {_form(tensor)}")
    if differences:
        shown = "; ".join(differences[:NAMES_SHOWN_MAX])
        more = f"; and {len(differences) - NAMES_SHOWN_MAX} more" if len(differences) > NAMES_SHOWN_MAX else ""
        raise ValueError(
            f"{what} does not fit this model ({shown}{more}): use the model and the settings it was saved with"
        )


def _form(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    rows = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # By address, so that nothing is copied and tensors may share memory, which save_file would refuse.
    serialize_file({name: _described(row) for name, row in rows.items()}, str(path), None)
    _sync(path)


def _described(row: torch.Tensor) -> Any:
    dtype = str(row.dtype).removeprefix("torch.")
    return TensorSpec(dtype=dtype, shape=list(row.shape), data_ptr=row.data_ptr(), data_len=row.nbytes)


def _write_state(folder: Path, state: Mapping[str, Json]) -> None:
    tensors = folder / TENSORS_FILE
    description = {
        "format": FORMAT,
        "tensors_bytes": tensors.stat().st_size,
        "tensors_sha256": _digest(tensors),
        "state": dict(state),
    }
    (folder / STATE_FILE).write_text(json.dumps(description, indent=1), encoding="utf-8")
    _sync(folder / STATE_FILE)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows has no handle of a folder to sync; its rename is journalled.
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _refuse_full_disk(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes + MARGIN_BYTES:
        raise OSError(f"it takes {num_bytes / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free")


def _reason(error: OSError | SafetensorError) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def _number(path: Path) -> int:
    match = NAME.match(path.name)
    assert match is not None, f"{path} is no checkpoint"
    return int(match[1])


def _next_number(folder: Path) -> int:
    return max((_number(path) for path in checkpoints(folder)), default=0) + 1


def _remove_oldest(folder: Path, num_kept: int) -> None:
    for path in checkpoints(folder)[:-num_kept]:
        # Hidden first: what a crash leaves of it must not look like a checkpoint.
        hidden = folder / f"{UNFINISHED}{path.name}"
        path.rename(hidden)
        shutil.rmtree(hidden)


def _remove_unfinished(folder: Path) -> None:
    for path in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(path)


def _newest(folder: Path) -> Path:
    found = checkpoints(folder)
    if not found:
        raise ValueError(f"there is no checkpoint in {folder}: give a run's folder, or start without resuming")
    return found[-1]


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description: Any = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no checkpoint of ours: its {STATE_FILE} cannot be read ({error})") from error
    if not isinstance(description, dict) or "format" not in description:
        raise ValueError(f"{path} is no checkpoint of ours: its {STATE_FILE} states no format")
    if description["format"] != FORMAT:
        raise ValueError(f"{path} has the format {description['format']!r}, and this version reads {FORMAT!r}")
    return cast(dict[str, Any], description)


def _check_tensors(path: Path, description: Mapping[str, Any]) -> None:
    tensors = path / TENSORS_FILE
    if not tensors.is_file():
        raise ValueError(f"{path} has no {TENSORS_FILE}: remove this folder to resume from the one before it")
    size = tensors.stat().st_size
    if size != description.get("tensors_bytes") or _digest(tensors) != description.get("tensors_sha256"):
        raise ValueError(
            f"{tensors} is damaged ({size} bytes, not those that were saved): remove {path.name} to resume from the "
            f"one before it"
        )
