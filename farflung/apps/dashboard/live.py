"""Parts of a page that are drawn anew when, and only when, what they show has changed."""

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from nicegui import ui
from nicegui.element import Element

Model = TypeVar("Model")
_NOTHING = object()


class Live(Generic[Model]):
    """One such part; models are compared by value."""

    def __init__(self, container: Element, draw: Callable[[Model], object]) -> None:
        self._container = container
        self._draw = draw
        self._shown: object = _NOTHING

    def show(self, model: Model) -> None:
        """Bring the part up to date."""
        if model == self._shown:
            return
        self._shown = model
        self._container.clear()
        with self._container:
            self._draw(model)


class LiveList(Generic[Model]):
    """One part per key, in order; only those whose model has changed are drawn."""

    def __init__(
        self, container: Element, draw: Callable[[Model], object], make: Callable[[], Element] = ui.element
    ) -> None:
        """`make`: an empty element for one part."""
        self._container = container
        self._draw = draw
        self._make = make
        self._parts: dict[str, tuple[Element, Live[Model]]] = {}

    def show(self, models: Mapping[str, Model]) -> None:
        """Bring all up to date, and remove those that are no more."""
        for key in [key for key in self._parts if key not in models]:
            self._parts.pop(key)[0].delete()
        is_moved = list(self._parts) != [key for key in models if key in self._parts]
        for index, (key, model) in enumerate(models.items()):
            if key not in self._parts:
                with self._container:
                    element = self._make()
                self._parts[key] = (element, Live(element, self._draw))
                is_moved = True
            if is_moved:
                self._parts[key][0].move(target_index=index)
            self._parts[key][1].show(model)
        self._parts = {key: self._parts[key] for key in models}


class LiveChart:
    """A chart that is sent anew when its options have changed."""

    def __init__(self, options: dict[str, Any], classes: str) -> None:
        self.chart = ui.echart(options).classes(classes)

    def show(self, options: dict[str, Any]) -> None:
        """Bring it up to date."""
        if options == self.chart.options:
            return
        self.chart.options.clear()
        self.chart.options.update(options)
        self.chart.update()
