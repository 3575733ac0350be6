"""What a machine must have by itself: a home that takes data, room, memory, a port, and a torch that computes."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from farflung.apps.doctor.finding import Finding, fine, note, wrong
from farflung.apps.listening import bind
from farflung.runtime.home import VARIABLE, Home

PROBE_BYTES = 1 << 20
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
MATRIX_SIZE = 64


def check_home(folder: Path) -> Finding:
    """Whether a node could live in that folder now."""
    if not (folder / "lock").exists():
        return fine("home", f"{folder} is free for a node")
    try:
        Home(folder).close()
    except ValueError as error:
        return note("home", str(error), f"{VARIABLE}={folder}-2 farflung ...")
    return fine("home", f"{folder} has the key of a node, and none lives there now")


def check_disk(folder: Path, bytes_min: int) -> Finding:
    """Whether the place of that folder takes data, by writing some, and has so many bytes left."""
    place = next(one for one in (folder, *folder.parents) if one.exists())
    mend = f"make room there (du -sh {place}/* shows what takes it), or set {VARIABLE} to a folder elsewhere"
    try:
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(bytes(PROBE_BYTES))
            probe.flush()
    except OSError as error:
        return wrong("disk", f"{place} takes no data: {error.strerror}", mend)
    left = shutil.disk_usage(place).free
    if left < bytes_min:
        return wrong("disk", f"{place} has {_size(left)} left, and models and journals want {_size(bytes_min)}", mend)
    return fine("disk", f"{place} has {_size(left)} left")


def check_memory(bytes_min: int) -> Finding:
    """Whether so many bytes of memory are free."""
    left = psutil.virtual_memory().available
    if left < bytes_min:
        says = f"{_size(left)} of memory are free, and a model with its cache wants {_size(bytes_min)}"
        return wrong("memory", says, "end what takes it: ps -eo pid,rss,args --sort=-rss | head")
    return fine("memory", f"{_size(left)} are free")


def check_port(host: str, port: int) -> Finding:
    """Whether a server could listen there, by doing it."""
    try:
        with bind(host, port) as listening:
            bound = listening.getsockname()[1]
    except ValueError as error:
        return wrong(
            "port", str(error), f"--port 0 takes any that is free; ss -ltnp 'sport = :{port}' shows who has it"
        )
    return fine("port", f"a server can listen on {host}:{port if port else f'{bound}, or any other that is free'}")


def check_devices() -> Iterator[Finding]:
    """Whether torch computes right, on the processor and on every accelerator that it sees."""
    again = "python -m pip install --force-reinstall torch"
    try:
        import torch
    except (ImportError, OSError) as error:
        yield wrong("device", f"torch cannot be loaded: {str(error).splitlines()[0]}", again)
        return
    names = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    names += ["mps"] if torch.backends.mps.is_available() else []
    values = torch.arange(MATRIX_SIZE * MATRIX_SIZE, dtype=torch.float32).reshape(MATRIX_SIZE, MATRIX_SIZE).sin()
    right = (values.double() @ values.double()).float()
    for name in names:
        try:
            product = (values.to(name) @ values.to(name)).cpu()
        except RuntimeError as error:
            yield wrong("device", f"{name} does not compute: {str(error).splitlines()[0]}", "--device cpu, or " + again)
            continue
        if torch.allclose(product, right, atol=0.1):  # TensorFloat-32 has ten bits
            yield fine("device", f"{_spoken(name)} computes, with torch {torch.__version__}")
        else:
            yield wrong("device", f"{name} computes wrong products", "--device cpu; the accelerator may be defective")
    if NVIDIA_DRIVER.exists() and not torch.cuda.is_available():
        says = f"this machine has an NVIDIA driver, and torch {torch.__version__} cannot use it"
        yield wrong("device", says, f"{again}, in a build for the CUDA version that nvidia-smi shows")


def _spoken(name: str) -> str:
    import torch

    return f"{name} ({torch.cuda.get_device_name(name)})" if name.startswith("cuda") else name


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"
