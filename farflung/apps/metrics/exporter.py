"""`--metrics`: an address at which Prometheus may ask this process."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, start_http_server
from prometheus_client.registry import Collector

HOST_DEFAULT = "127.0.0.1"


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of `9100` (this machine alone), `0.0.0.0:9100` or `[::]:9100`.

    Raises:
        ValueError: not of that form.
    """
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"--metrics takes a port or host:port, such as 9100 or 0.0.0.0:9100, not {text!r}")
    return host.strip("[]") or HOST_DEFAULT, int(port)


@contextlib.contextmanager
def exporting(address: str | None, collectors: Sequence[Collector], tell: Callable[[str], object]) -> Iterator[None]:
    """Answer Prometheus while entered, from a thread of its own; None: do nothing.

    Raises:
        ValueError: not an address, or the port is in use.
    """
    if address is None:
        yield
        return
    host, port = parse_address(address)
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise ValueError(f"--metrics cannot listen on {host}:{port}: {error.strerror}; choose another port") from None
    shown = f"[{host}]" if ":" in host else host
    tell(f"metrics at http://{shown}:{server.server_port}/metrics")
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
