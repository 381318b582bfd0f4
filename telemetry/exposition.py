"""The text that Prometheus reads."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import REGISTRY, Collector

from telemetry.process_files import VARIABLE, readable


class Collects(Protocol):
    """Whatever has metrics when it is asked."""

    def collect(self) -> Iterable[Metric]: ...


class Labelled(Collector):
    """The metrics of others, each with one label more."""

    def __init__(self, source: Collects, name: str, value: str) -> None:
        self._source = source
        self._label = {name: value}

    def collect(self) -> Iterator[Metric]:
        for metric in self._source.collect():
            copy = Metric(metric.name, metric.documentation, metric.type, metric.unit)
            copy.samples = [sample._replace(labels={**sample.labels, **self._label}) for sample in metric.samples]
            yield copy


def of_this_program() -> Collects:
    """Return the metrics of this process; of all processes of its master, where there is one."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        return REGISTRY
    with readable(Path(folder)):
        return _Gathered(MultiProcessCollector(registry=None, path=folder).collect())  # type: ignore[no-untyped-call]


def render(accept: str, *sources: Collects) -> tuple[bytes, str]:
    """Return the sources' metrics, and their content type, which ``accept`` (the header of that name) chooses."""
    registry = CollectorRegistry()
    for source in sources:
        registry.register(_Gathered(source.collect()))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Gathered(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics

    def describe(self) -> Iterable[Metric]:
        """Nothing is asked twice to find out its names."""
        return []
