"""Numbers as people read them on the pages."""

from farflung.apps.runs.plot import byte_text


def round_trip_text(seconds: float | None) -> str:
    """`12 ms`, `0.4 ms`; a dash if nobody has measured."""
    if seconds is None:
        return "–"
    milliseconds = seconds * 1000
    return f"{milliseconds:.1f} ms" if milliseconds < 10 else f"{milliseconds:.0f} ms"


def rate_text(bytes_per_second: float | None) -> str:
    """`1.2 MB/s`; a dash if nobody has measured."""
    return "–" if bytes_per_second is None else f"{byte_text(bytes_per_second)}/s"


def way_text(round_trip_seconds: float | None, bytes_per_second: float | None) -> str:
    """Both, as far as they are known."""
    parts = [round_trip_text(round_trip_seconds), rate_text(bytes_per_second)]
    return " · ".join(part for part in parts if part != "–") or "–"
