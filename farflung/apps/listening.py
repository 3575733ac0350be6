"""Listening on a port of this machine."""

import socket


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        ValueError: the port is taken, or the host is not this machine's.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ValueError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port or --host") from None
