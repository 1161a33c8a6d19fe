# SPDX-License-Identifier: Apache-2.0
"""The agent's log as operators read it: who, what, why, at which level; signals that dump it."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support import agent
from tests.support.cri_client import BUSYBOX, Cri, api, container
from tests.support.metrics_page import scrape
from tests.support.node_state import agent_pid
from tests.support.pods import Pods
from tests.support.waiting import until

pytestmark = pytest.mark.root

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
METADATA = [("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01")]


class Log:
    """Lines that come after a point."""

    def __init__(self) -> None:
        self._seen = agent.LOG.stat().st_size

    def lines(self, event: str = "", **facts: object) -> list[dict[str, Any]]:
        text = agent.LOG.read_bytes()[self._seen :].decode()
        found = [json.loads(line) for line in text.splitlines()]
        return [
            line for line in found if event in {"", line["event"]} and line.items() >= facts.items()
        ]

    def line(self, event: str, **facts: object) -> dict[str, Any]:
        until(lambda: self.lines(event, **facts), f"the line {event} {facts}")
        (line,) = self.lines(event, **facts)
        return line


@pytest.fixture
def log(pods: Pods) -> Log:
    """What the agent logs from now on."""
    del pods
    return Log()


def fails(call: Callable[[], object]) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return str(caught.value.details())


def of_pod(config: api.PodSandboxConfig) -> dict[str, str]:
    metadata = config.metadata
    return {"pod": f"{metadata.namespace}/{metadata.name}", "pod_uid": metadata.uid}


def test_every_line_of_a_failed_create_names_pod_container_and_image(pods: Pods, log: Log) -> None:
    sandbox, config = pods.sandbox()
    work = container("main", ["/no/such/program"])
    request = api.CreateContainerRequest(pod_sandbox_id=sandbox, config=work, sandbox_config=config)
    text = fails(lambda: pods.cri.runtime.CreateContainer(request, metadata=METADATA))
    line = log.line("call", rpc="CreateContainer")
    assert line["level"] == "error"
    assert line["error"] == text
    assert (line["code"], line["trace_id"]) == ("INTERNAL", TRACE)
    facts = {**of_pod(config), "sandbox_id": sandbox, "container": "main", "image": BUSYBOX}
    for found in log.lines(trace_id=TRACE):
        assert found.items() >= facts.items()


def test_a_failed_pull_names_image_and_pod(pods: Pods, log: Log) -> None:
    config = pods.config()
    name = "registry.k8s.io/no/such:1"
    request = api.PullImageRequest(image=api.ImageSpec(image=name), sandbox_config=config)
    text = fails(lambda: pods.cri.image.PullImage(request))
    line = log.line("call", rpc="PullImage")
    assert line["level"] in {"error", "warning"}
    assert line.items() >= {**of_pod(config), "image": name, "error": text}.items()


def test_a_call_that_its_caller_gives_up_says_so(pods: Pods, log: Log) -> None:
    container_id = pods.running("sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
    request = api.StopContainerRequest(container_id=container_id, timeout=20)
    call = pods.cri.runtime.StopContainer.future(request)
    log.line("container_stopping", container_id=container_id)
    call.cancel()
    line = log.line("call", rpc="StopContainer")
    assert (line["code"], line["level"]) == ("CANCELLED", "warning")
    assert line["error"] == "the caller cancelled the call"
    assert line["container_id"] == container_id
    pods.cri.stop(container_id)


def test_the_events_of_a_life_name_pod_and_container_and_no_foreign_call(
    pods: Pods, log: Log
) -> None:
    sandbox, config = pods.sandbox()
    work = container("main", ["sleep", "1000"])
    labels = {"name": "pod", "namespace": "namespace", "uid": "uid"}
    for key in labels:
        work.labels[f"io.kubernetes.pod.{key}"] = getattr(config.metadata, key)
    container_id = pods.cri.create(sandbox, work, config)
    pods.cri.start(container_id)
    pods.cri.stop(container_id)
    pods.cri.remove(container_id)
    for _ in range(3):
        pods.cri.stop_pod(sandbox)
    pods.cri.remove_pod(sandbox)
    whole = {
        **of_pod(config),
        "sandbox_id": sandbox,
        "container": "main",
        "container_id": container_id,
        "image": BUSYBOX,
    }
    for event in ("container_created", "container_started", "container_stopped"):
        assert log.line(event).items() >= whole.items()
    exited = log.line("container_exited")
    assert exited.items() >= whole.items()
    assert "rpc" not in exited
    assert "trace_id" not in exited
    assert log.line("container_removed").items() >= whole.items()
    for event in ("sandbox_started", "sandbox_stopped", "sandbox_removed"):  # each once
        assert log.line(event).items() >= {**of_pod(config), "sandbox_id": sandbox}.items()
    for line in log.lines():
        assert list(line)[:3] == ["event", "level", "timestamp"]


def test_a_text_of_megabytes_of_an_image_reaches_client_and_log_cut(pods: Pods, log: Log) -> None:
    sandbox, config = pods.sandbox()
    work = container("main", ["true"])
    work.linux.security_context.run_as_username = "\x1b]0;x\x07" + "x" * 5_000_000
    text = fails(lambda: pods.cri.create(sandbox, work, config))
    assert len(text) < 5000
    assert text.isprintable()
    assert log.line("call", rpc="CreateContainer")["error"]
    assert max(len(line) for line in agent.LOG.read_text().splitlines()) < 48 << 10


# Signals and the metrics address


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_that_means_nothing_ends_no_daemon(pods: Pods, log: Log, number: int) -> None:
    pid = agent_pid()
    container_id = pods.running()
    for _ in range(3):
        os.kill(pid, number)
    if number == signal.SIGUSR1:
        until(lambda: log.lines("task_stack"), "the dump")
        main = log.lines("thread_stack", thread="MainThread")
        assert any("run_forever" in frame for frame in main[0]["stack"])
        watching = [
            line for line in log.lines("task_stack") if line["task"] == f"exit:{container_id}"
        ]
        assert any("_watch" in frame for frame in watching[0]["stack"])
    else:
        name = signal.Signals(number).name
        until(lambda: log.lines("signal_ignored", signal=name), "the line")
    assert agent_pid() == pid
    assert pods.cri.exec(container_id, "true").exit_code == 0
    # Handlers end with execve: the container has the system's own.
    ignored = pods.cri.exec(
        container_id, "sh", "-c", "grep -E 'Sig(Ign|Blk)' /proc/1/status"
    ).stdout
    masks = [int(line.split()[1], 16) for line in ignored.decode().splitlines()]
    assert not any(mask >> (number - 1) & 1 for mask in masks)


@pytest.fixture
def taken_port() -> Iterator[None]:
    """Another program has the metrics' address while the agent starts."""
    agent.stop()
    with socket.create_server(("127.0.0.1", 9880)):
        agent.start().close()
        yield
    agent.stop()
    agent.start().close()


def test_a_taken_metrics_address_keeps_no_pod_from_starting(
    cri: Cri, taken_port: None, tmp_path: Path
) -> None:
    del cri, taken_port
    found = [json.loads(line) for line in agent.LOG.read_text().splitlines()]
    line = [line for line in found if line["event"] == "metrics_not_served"][-1]
    assert line["level"] == "error"
    assert "127.0.0.1:9880" in line["error"]
    assert "telemetry.metrics_address" in line["error"]
    client = Cri()
    pods = Pods(client, tmp_path, "taken")
    assert client.exec(pods.running(), "true").exit_code == 0
    client.close()


def test_counters_are_there_from_the_start_for_every_label(pods: Pods) -> None:
    agent.stop()
    pods.cri = agent.start()
    found = {
        name: {tuple(sample.labels.values()): sample.value for sample in family.samples}
        for name, family in scrape().items()
        if family.type == "counter"
    }
    assert set(found["criagent_container_exits_total"]) == {
        ("Completed",),
        ("Error",),
        ("OOMKilled",),
        ("ContainerMonitorLost",),
        ("Unknown",),
    }
    assert len(found["criagent_rpc_errors_total"]) == 16
    for name in ("criagent_pulls_total", "criagent_internal_failures_total"):
        assert len(found[name]) == 3
    for name, samples in found.items():
        assert samples or name.startswith("criagent_nri_"), name  # labelled by plugin
        if samples and name != "criagent_log_lines_total":  # a start may warn
            assert set(samples.values()) == {0.0}, name
