# SPDX-License-Identifier: Apache-2.0
"""Names as the peers take them: no uid, slashes, host names of every kind; and PID targets."""

from __future__ import annotations

import os
from pathlib import Path

import grpc
import pytest

from tests.support.cri_client import api, container
from tests.support.made_images import HANDLERS
from tests.support.mapped_pods import words
from tests.support.pods import Pods
from tests.support.refusals import refused

pytestmark = pytest.mark.root


@pytest.mark.parametrize("handler", HANDLERS)
def test_names_with_slashes_and_no_uid_are_names_and_no_paths(pods: Pods, handler: str) -> None:
    config = pods.config()
    config.metadata.name, config.metadata.namespace = "../../../tmp/pod", "a/b"
    config.metadata.uid = ""
    sandbox = pods.cri.run(config, handler=handler)
    wanted = container("../../c/d", ["sleep", "1000"])
    wanted.log_path = "0.log"
    container_id = pods.cri.create(sandbox, wanted, config)
    pods.cri.start(container_id)
    assert words(pods, container_id, "echo", "alive") == "alive"
    status = pods.cri.pod_status(sandbox)
    assert (status.metadata.name, status.metadata.uid) == ("../../../tmp/pod", "")
    assert pods.cri.status(container_id).metadata.name == "../../c/d"
    assert not Path("/tmp/pod").exists()
    assert pods.cri.run(config, handler=handler) == sandbox


@pytest.mark.parametrize(
    "name",
    ["pod.sub.ns.svc.", "-under_score", "UPPER", "a" * 64, "ü.example", "with blank", "../x"],
)
def test_a_hostname_is_what_the_kernel_takes(pods: Pods, name: str) -> None:
    """The kubelet sends a trailing dot for setHostnameAsFQDN without a cluster domain."""
    container_id = pods.running(pod=pods.sandbox(lambda config: setattr(config, "hostname", name)))
    assert words(pods, container_id, "hostname") == name
    assert words(pods, container_id, "cat", "/etc/hostname") == name
    assert words(pods, container_id, "sh", "-c", 'echo "$HOSTNAME"') == name


def test_with_the_nodes_network_its_own_hostname_may_be_said(pods: Pods) -> None:
    def host(config: api.PodSandboxConfig) -> None:
        config.linux.security_context.namespace_options.network = api.NODE
        config.hostname = os.uname().nodename

    container_id = pods.running(pod=pods.sandbox(host))
    assert words(pods, container_id, "hostname") == os.uname().nodename


def test_a_dead_target_or_holder_gives_nobody_its_pid_namespace(pods: Pods) -> None:
    sandbox, config = pods.sandbox()
    container_id = pods.running(pod=(sandbox, config))
    pods.cri.stop(container_id)
    wanted = container("debugger", ["sleep", "1"])
    options = wanted.linux.security_context.namespace_options
    options.pid, options.target_id = api.TARGET, container_id
    refused(
        lambda: pods.cri.create(sandbox, wanted, config),
        grpc.StatusCode.INVALID_ARGUMENT,
        "not running",
    )
    assert [one.id for one in pods.cri.containers()] == [container_id]
