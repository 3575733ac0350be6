"""Families of values as Prometheus has them."""

from collections.abc import Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric


def gauge(name: str, what: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], float]]) -> Metric:
    """A family of values that come and go."""
    family = GaugeMetricFamily(name, what, labels=labels)
    for own, value in values:
        family.add_metric(own, value)
    return family


def counter(name: str, what: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], float]]) -> Metric:
    """A family of counts that only grow; Prometheus calls it NAME_total."""
    family = CounterMetricFamily(name, what, labels=labels)
    for own, value in values:
        family.add_metric(own, value)
    return family
