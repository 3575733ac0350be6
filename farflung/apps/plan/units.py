"""Figures as people read them."""


def number_of(value: float) -> str:
    """With three digits, or whole."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def time_of(seconds: float) -> str:
    """As people say it."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def bytes_of(num_bytes: float) -> str:
    """In the unit that fits."""
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes:.0f} B"
