# SPDX-License-Identifier: Apache-2.0
"""Spans of a running agent, as a collector receives them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from criagent.version import VERSION
from tests.support import agent, image_builder
from tests.support.cri_client import BUSYBOX, Cri, api, container
from tests.support.otlp import Collector, attributes
from tests.support.pods import Pods
from tests.support.pulling import Registry, name, served

pytestmark = pytest.mark.root


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture
def traced(collector: Collector) -> Iterator[Cri]:
    """An agent that exports its spans; the last ones when it stops."""
    agent.stop()
    client = agent.start(f'[telemetry]\notlp_endpoint = "{collector.endpoint}"\n')
    yield client
    client.close()
    if agent.running():
        agent.stop()
    agent.start().close()


@pytest.fixture
def registry() -> Iterator[Registry]:
    with served() as one:
        yield one


def layer(file: str) -> bytes:
    made = image_builder.Layer()
    made.file(file, b"content")
    return made.tar()


def calls(collector: Collector, method: str) -> list[Any]:
    return [
        span
        for span in collector.spans()
        if attributes(span.attributes).get("rpc.method") == method
    ]


def children(collector: Collector, parent: Any) -> dict[str, list[str]]:
    """Names of the spans below `parent`, each with what it worked on."""
    found: dict[str, list[str]] = {}
    for span in collector.spans():
        if span.parent_span_id == parent.span_id:
            assert span.trace_id == parent.trace_id
            found.setdefault(span.name, []).append(attributes(span.attributes)["criagent.work"])
    return found


def test_calls_name_their_objects_and_have_their_stages_below(
    pods: Pods, registry: Registry, collector: Collector, traced: Cri
) -> None:
    image = registry.image(layer("a"), layer("b"), config={"config": {}})
    traced.pull(name(registry))
    traced.remove_image(image)
    sandbox_id, config = pods.sandbox()
    container_id = traced.create(sandbox_id, container("main", ("sleep", "1000")), config)
    traced.start(container_id)
    broken = container("broken", ("/no/such/program",))
    with pytest.raises(grpc.RpcError) as failed:
        traced.start(traced.create(sandbox_id, broken, config))
    traced.remove_pod(sandbox_id)
    agent.stop()

    assert (
        collector.resource().items()
        >= {
            "service.name": "criagent",
            "service.version": VERSION,
            "host.name": os.uname().nodename,
        }.items()
    )

    (run,) = calls(collector, "RunPodSandbox")
    pod = {
        "k8s.namespace.name": config.metadata.namespace,
        "k8s.pod.name": config.metadata.name,
        "k8s.pod.uid": config.metadata.uid,
    }
    assert (
        attributes(run.attributes).items()
        >= {
            **pod,
            "rpc.system": "grpc",
            "rpc.grpc.status_code": 0,
        }.items()
    )
    assert {"files and namespaces", "network"} <= set(children(collector, run))

    create = calls(collector, "CreateContainer")[0]
    assert (
        attributes(create.attributes).items()
        >= {
            **pod,
            "k8s.container.name": "main",
            "container.image.name": BUSYBOX,
            "criagent.sandbox.id": sandbox_id,
        }.items()
    )
    stages = children(collector, create)
    assert {"root file system", "conmon and the OCI runtime"} <= set(stages)

    start = calls(collector, "StartContainer")[0]
    assert attributes(start.attributes)["container.id"] == container_id
    assert "OCI runtime" in children(collector, start)

    (pull,) = calls(collector, "PullImage")
    below = children(collector, pull)
    assert {"manifest", "configuration", "sync to disk"} <= set(below)
    assert len(below["layer unpacking"]) == 2
    assert set(below["layer unpacking"]) == set(below["layer download"])
    assert all(layer.startswith("sha256:") for layer in below["layer download"])

    bad = [span for span in collector.spans() if span.status.code == span.status.STATUS_CODE_ERROR]
    (last,) = bad
    assert last.status.message == failed.value.details()
    assert attributes(last.attributes)["rpc.grpc.status_code"] == failed.value.code().value[0]
    assert attributes(last.attributes)["k8s.container.name"] == "broken"


def test_a_collector_that_is_gone_delays_nothing(collector: Collector, traced: Cri) -> None:
    collector.close()
    assert traced.runtime.Version(api.VersionRequest()).runtime_name == "criagent"
    agent.stop()  # within its limit, or the test fails
