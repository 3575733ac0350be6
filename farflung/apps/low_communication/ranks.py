"""Doing something on all ranks of a site, or on the first for all, so that a failure stops them together."""

from collections.abc import Callable
from typing import TypeVar, cast

from farflung.apps.low_communication.meeting import NobodyThere
from farflung.learn.redistribute import Site
from farflung.world.errors import FarflungError

T = TypeVar("T")

_KINDS: dict[str, type[Exception]] = {"value": ValueError, "nobody": NobodyThere, "farflung": FarflungError}
"""Errors as the other ranks raise them, narrowest first."""


class Ranks:
    """The ranks of a site. All of them make the same calls in the same order."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def first(self, action: Callable[[], T]) -> T:
        """What `action` gives on the first rank, on all; its error is raised on all."""
        return cast(T, self.together(action if self._site.rank == 0 else lambda: None))

    def together(self, action: Callable[[], T]) -> T:
        """Do something on every rank and return what it gave on the first; if it fails anywhere, all fail."""
        value, failure = None, None
        try:
            value = action()
        except (ValueError, FarflungError) as error:
            failure = error
        told = None if failure is None else (_kind(failure), str(failure))
        outcomes = cast(list[tuple[T, tuple[str, str] | None]], self._site.gather((value, told)))
        if failure is not None:
            raise failure
        for _, problem in outcomes:
            if problem is not None:
                raise _KINDS[problem[0]](problem[1])
        return outcomes[0][0]


def _kind(error: Exception) -> str:
    return next(kind for kind, cls in _KINDS.items() if isinstance(error, cls))
