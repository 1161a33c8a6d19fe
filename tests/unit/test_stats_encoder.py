# SPDX-License-Identifier: Apache-2.0
"""Samples as the messages that a client decodes, with what the encoder keeps between them."""

from __future__ import annotations

import dataclasses

from criagent._proto import api_pb2
from criagent.cri.convert.stats import StatsEncoder
from criagent.model.container import Container, ContainerId, ContainerMetadata, ContainerSpec
from criagent.model.sandbox import Sandbox, SandboxId, SandboxMetadata, SandboxSpec
from criagent.runtime.stats.cgroup_usage import Pressure, PressurePair, Usage
from criagent.runtime.stats.container import StatsSample
from criagent.runtime.stats.pod import Interface, PodSample
from criagent.runtime.stats.writable_layers import LayerUsage

LINE = Pressure(total_us=7, avg10=1.5, avg60=0.5, avg300=0.25)
USAGE = Usage(
    cpu_ns=5_000,
    memory=100,
    working_set=80,
    rss=60,
    swap=3,
    swap_available=4,
    cpu_pressure=PressurePair(full=LINE, some=LINE),
)
CONTAINER = Container(
    id=ContainerId("c" * 64),
    sandbox_id=SandboxId("s" * 64),
    spec=ContainerSpec(
        metadata=ContainerMetadata(name="main", attempt=2),
        image="busybox",
        labels={"app": "web"},
        annotations={"note": "x" * 300},
    ),
    created_at_ns=1,
    boot_id="",
    handler="crun",
)
SANDBOX = Sandbox(
    id=SandboxId("s" * 64),
    spec=SandboxSpec(
        metadata=SandboxMetadata(name="web", uid="u", namespace="ns"), labels={"app": "web"}
    ),
    created_at_ns=1,
    boot_id="",
)


def sample(now_ns: int, layer: LayerUsage | None = None) -> StatsSample:
    return StatsSample(
        container=CONTAINER,
        timestamp_ns=now_ns,
        usage=USAGE,
        cpu_nano_cores=9,
        layer=layer,
        mountpoint="/var/lib/criagent",
    )


def decoded(encoder: StatsEncoder, one: StatsSample) -> api_pb2.ContainerStats:
    return api_pb2.ContainerStats.FromString(encoder.container(one))


def layer(used_bytes: int, counted_at_ns: int) -> LayerUsage:
    return LayerUsage(used_bytes=used_bytes, inodes=3, counted_at_ns=counted_at_ns)


def test_a_container_is_one_message_of_all_its_parts() -> None:
    found = decoded(StatsEncoder(lambda _: True), sample(77, layer(4096, 55)))
    pressure = api_pb2.PsiData(Total=7_000, Avg10=1.5, Avg60=0.5, Avg300=0.25)
    assert found == api_pb2.ContainerStats(
        attributes=api_pb2.ContainerAttributes(
            id="c" * 64,
            metadata=api_pb2.ContainerMetadata(name="main", attempt=2),
            labels={"app": "web"},
            annotations={"note": "x" * 300},
        ),
        cpu=api_pb2.CpuUsage(
            timestamp=77,
            usage_core_nano_seconds=api_pb2.UInt64Value(value=5_000),
            usage_nano_cores=api_pb2.UInt64Value(value=9),
            psi=api_pb2.PsiStats(Full=pressure, Some=pressure),
        ),
        memory=api_pb2.MemoryUsage(
            timestamp=77,
            working_set_bytes=api_pb2.UInt64Value(value=80),
            usage_bytes=api_pb2.UInt64Value(value=100),
            rss_bytes=api_pb2.UInt64Value(value=60),
        ),
        writable_layer=api_pb2.FilesystemUsage(
            timestamp=55,
            fs_id=api_pb2.FilesystemIdentifier(mountpoint="/var/lib/criagent"),
            used_bytes=api_pb2.UInt64Value(value=4096),
            inodes_used=api_pb2.UInt64Value(value=3),
        ),
        swap=api_pb2.SwapUsage(
            timestamp=77,
            swap_usage_bytes=api_pb2.UInt64Value(value=3),
            swap_available_bytes=api_pb2.UInt64Value(value=4),
        ),
    )


def test_what_changes_between_two_answers_is_not_kept() -> None:
    encoder = StatsEncoder(lambda _: True)
    before = decoded(encoder, sample(1)).writable_layer
    assert (before.timestamp, before.HasField("used_bytes")) == (1, False)
    for now_ns, counted in ((2, layer(10, 1)), (3, layer(20, 2)), (4, layer(20, 2))):
        found = decoded(encoder, sample(now_ns, counted))
        assert found.cpu.timestamp == now_ns
        assert found.writable_layer.used_bytes.value == counted.used_bytes
        assert found.writable_layer.timestamp == counted.counted_at_ns
    spec = dataclasses.replace(CONTAINER.spec, labels={"app": "other"})
    changed = StatsSample(container=dataclasses.replace(CONTAINER, spec=spec), timestamp_ns=5)
    found = decoded(encoder, changed)
    assert dict(found.attributes.labels) == {"app": "other"}
    assert not found.cpu.HasField("usage_core_nano_seconds")


def test_a_pod_has_its_containers_and_its_network() -> None:
    numbers = dict.fromkeys(
        (f"{way}_{what}" for way in ("rx", "tx") for what in ("packets", "errors", "dropped")), 0
    )
    interfaces = tuple(
        Interface(name=name, rx_bytes=rx, tx_bytes=2, **numbers)
        for name, rx in (("net1", 5), ("eth0", 6))
    )
    one = PodSample(
        sandbox=SANDBOX,
        timestamp_ns=9,
        usage=USAGE,
        cpu_nano_cores=None,
        processes=2,
        interfaces=interfaces,
        containers=(sample(9), sample(9)),
    )
    encoder = StatsEncoder(lambda _: True)
    found = api_pb2.PodSandboxStats.FromString(encoder.pod(one))
    assert found.attributes.metadata == api_pb2.PodSandboxMetadata(
        name="web", uid="u", namespace="ns"
    )
    assert found.linux.cpu.usage_core_nano_seconds.value == 5_000
    assert found.linux.process.process_count.value == 2
    assert found.linux.network.default_interface.rx_bytes.value == 6
    assert [other.name for other in found.linux.network.interfaces] == ["net1"]
    assert list(found.linux.containers) == [decoded(encoder, sample(9))] * 2


def test_nothing_is_kept_of_what_was_removed() -> None:
    rows = {CONTAINER.id}
    encoder = StatsEncoder(rows.__contains__)
    encoder.container(sample(1))
    assert encoder.kept() == 1
    encoder.forget(CONTAINER.id)
    assert encoder.kept() == 0
    rows.clear()
    encoder.container(sample(2))  # removed while it was read
    assert encoder.kept() == 0
