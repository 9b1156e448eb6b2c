# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics, from the same status that people see. Rule: no patient data, no scan ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

_QUANTILES = {"p50": "0.5", "p95": "0.95", "p99": "0.99", "p99_9": "0.999", "max": "1"}
_COUNTS = ("frames", "passed_through", "deadline_misses", "lost", "errors")

Statuses = Mapping[str, Mapping[str, Any]]


def write_metrics(
    statuses: Statuses, counts: Mapping[str, Any] | None, rendering: Mapping[str, Any] | None = None
) -> tuple[bytes, str]:
    """Return the exposition text and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(statuses, counts, rendering))
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _Collector(Collector):
    def __init__(
        self, statuses: Statuses, counts: Mapping[str, Any] | None, rendering: Mapping[str, Any] | None
    ) -> None:
        self._statuses, self._counts, self._rendering = statuses, counts, rendering

    def collect(self) -> Iterable[Metric]:
        yield from _processes(self._statuses)
        yield from _operators(self._statuses)
        yield from _drift(self._statuses)
        yield _buffer(self._counts or {})
        if self._rendering is not None:
            yield from _viewing(self._rendering)


def _processes(statuses: Statuses) -> Iterable[Metric]:
    up = GaugeMetricFamily("nearscan_process_running", "1 while the process answers and runs.", labels=["process"])
    alarms = GaugeMetricFamily("nearscan_alarms", "Alarms that stand.", labels=["process"])
    frames = CounterMetricFamily("nearscan_frames_in", "Imaging frames taken from the source.", labels=["pipeline"])
    for process, status in statuses.items():
        up.add_metric([process], float(status["state"] == "running"))
        alarms.add_metric([process], len(status.get("alarms", {})))
        if "pipeline" in status:
            frames.add_metric([status["pipeline"]], status.get("frames", {}).get("in", 0))
    return up, alarms, frames


def _operators(statuses: Statuses) -> Iterable[Metric]:
    labels = ["pipeline", "kind", "operator"]
    latency = GaugeMetricFamily(
        "nearscan_latency_seconds",
        "Stage: time in it. Sink: last byte in until handed over. Newest samples.",
        labels=[*labels, "quantile"],
    )
    events = CounterMetricFamily("nearscan_operator_events", "What happened to frames.", labels=[*labels, "event"])
    for status in statuses.values():
        for kind in ("stages", "sinks"):
            for operator, own in status.get(kind, {}).items():
                key = [status.get("pipeline", ""), kind[:-1], operator]
                for name, quantile in _QUANTILES.items():
                    if name in own.get("latency_ms", {}):
                        latency.add_metric([*key, quantile], own["latency_ms"][name] / 1000)
                for event in _COUNTS:
                    if event in own:
                        events.add_metric([*key, event], own[event])
    return latency, events


def _drift(statuses: Statuses) -> Iterable[Metric]:
    labels = ["pipeline", "operator", "model"]
    unlike = GaugeMetricFamily(
        "nearscan_model_unlike_card", "Quantities of the last 24 hours that are unlike the model's card.", labels=labels
    )
    far = GaugeMetricFamily(
        "nearscan_model_drift_distance", "Jensen-Shannon distance to the card, 0 to 1.", labels=[*labels, "quantity"]
    )
    limit = GaugeMetricFamily(
        "nearscan_model_drift_limit", "Distance beyond which it is unlike the card.", labels=[*labels, "quantity"]
    )
    values = GaugeMetricFamily(  # falls when an hour leaves the window, which a histogram must not
        "nearscan_model_values",
        "Values of the last 24 hours up to le. Input, output, level: over the image's scale; removed: over the level.",
        labels=[*labels, "quantity", "le"],
    )
    for status in statuses.values():
        for operator, own in status.get("stages", {}).items():
            if "drift" not in own:
                continue
            key, drift = [status.get("pipeline", ""), operator, own.get("model", "")], own["drift"]
            if drift["distance"]:
                unlike.add_metric(key, len(drift["unlike_card"]))
            for name in drift["distance"]:
                far.add_metric([*key, name], drift["distance"][name])
                limit.add_metric([*key, name], drift["limit"][name])
            for name, counts in drift["counts"].items():
                for edge, n in zip([*drift["edges"][name], "+Inf"], accumulate(counts), strict=True):
                    values.add_metric([*key, name, str(edge)], n)
    return unlike, far, limit, values


def _buffer(counts: Mapping[str, Any]) -> Metric:
    deliveries = GaugeMetricFamily(
        "nearscan_deliveries", "Results owed or delivered, by state.", labels=["destination", "state"]
    )
    for destination, states in counts.get("destinations", {}).items():
        for state, n in states.items():
            deliveries.add_metric([destination, state], n)
    return deliveries


def _viewing(rendering: Mapping[str, Any]) -> Iterable[Metric]:
    viewers = GaugeMetricFamily("nearscan_volume_viewers", "Pages that look at volumes.")
    viewers.add_metric([], rendering["viewers"])
    waits = GaugeMetricFamily(
        "nearscan_viewing_seconds",
        "What people who look at volumes wait for (docs/console.md). Newest samples.",
        labels=["role", "quantity", "quantile"],
    )
    for role, quantities in rendering["kpis"].items():
        for quantity, summary in quantities.items():
            for name, quantile in _QUANTILES.items():
                waits.add_metric([role, quantity.removesuffix("_ms"), quantile], summary[name] / 1000)
    return viewers, waits
