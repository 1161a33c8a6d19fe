# SPDX-License-Identifier: Apache-2.0
"""Metrics: catalogue and values to MetricDescriptor and PodSandboxMetrics."""

from __future__ import annotations

from collections.abc import Iterable

from criagent._proto import api_pb2
from criagent.runtime.stats.metric_catalogue import BASE_LABELS, CATALOGUE
from criagent.runtime.stats.metric_values import Value
from criagent.runtime.stats.metrics import PodMetrics


def descriptors() -> list[api_pb2.MetricDescriptor]:
    """Every metric that can occur."""
    return [
        api_pb2.MetricDescriptor(
            name=metric.name, help=metric.help, label_keys=(*BASE_LABELS, *metric.labels)
        )
        for metric in CATALOGUE
    ]


def pod_metrics(found: PodMetrics) -> api_pb2.PodSandboxMetrics:
    """One pod with its containers."""
    metadata = found.sandbox.spec.metadata
    pod = (metadata.name, metadata.namespace)
    return api_pb2.PodSandboxMetrics(
        pod_sandbox_id=found.sandbox.id,
        metrics=_metrics(found.values, (*pod, "", found.sandbox.id, "")),
        container_metrics=[
            api_pb2.ContainerMetrics(
                container_id=container.id,
                metrics=_metrics(
                    values,
                    (
                        *pod,
                        container.spec.metadata.name,
                        container.id,
                        container.spec.user_specified_image or container.spec.image,
                    ),
                ),
            )
            for container, values in found.containers
        ],
    )


def _metrics(values: Iterable[Value], base: tuple[str, ...]) -> list[api_pb2.Metric]:
    return [
        api_pb2.Metric(
            name=value.metric.name,
            timestamp=value.at_ns,  # 0 means "just now"
            metric_type=api_pb2.COUNTER if value.metric.counter else api_pb2.GAUGE,
            label_values=(*base, *value.labels),
            value=api_pb2.UInt64Value(value=int(value.number)),
            double_value=api_pb2.DoubleValue(value=value.number)
            if isinstance(value.number, float)
            else None,
        )
        for value in values
    ]
