# SPDX-License-Identifier: Apache-2.0
"""The kubelet and the agent end and come back: no container notices."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable

import pytest

from tests.support.cri_client import DEBIAN
from tests.support.kubelet_node import (
    LIMIT_S,
    PROBE_S,
    Json,
    Kubelet,
    ground,
    ids,
    restarts,
    shell,
    sleeper,
)


@pytest.fixture(scope="module")
def pods(kubelet: Kubelet) -> dict[str, Json]:
    """Pods of every kind, ready."""
    probe = {"timeoutSeconds": PROBE_S, "periodSeconds": 1}
    server = shell(
        "web",
        "mkdir /www; echo hi > /www/x; exec httpd -f -p 80 -h /www",
        ports=[{"containerPort": 80, "hostPort": 28090}],
        readinessProbe={"httpGet": {"path": "/x", "port": 80}, **probe},
        livenessProbe={"exec": {"command": ["true"]}, **probe},
    )
    image = [{"name": "image", "image": {"reference": DEBIAN, "pullPolicy": "IfNotPresent"}}]
    specs: dict[str, Json] = {
        "plain": {"containers": [sleeper("one"), sleeper("two")]},
        "web": {"containers": [server]},
        "ordered": {
            "initContainers": [shell("first", "true"), sleeper("side", restartPolicy="Always")],
            "containers": [sleeper("main")],
        },
        "with-image": {
            "volumes": image,
            "containers": [sleeper("main", volumeMounts=[{"name": "image", "mountPath": "/i"}])],
        },
        "shared-pid": {"shareProcessNamespace": True, "containers": [sleeper("a"), sleeper("b")]},
        "on-host": {"hostNetwork": True, "containers": [sleeper("main")]},
    }
    for name, spec in specs.items():
        kubelet.add(name, spec)
    return {name: kubelet.until_ready(name) for name in specs}


def _both(kubelet: Kubelet) -> None:
    ground.kill()
    ground.kill_agent()
    kubelet.start()


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda kubelet: kubelet.restart(), id="kubelet-restarted"),
        pytest.param(lambda _: ground.restart_agent(), id="agent-restarted"),
        pytest.param(lambda _: ground.kill_agent(), id="agent-killed"),
        pytest.param(_both, id="both-killed"),
    ],
)
def test_no_container_notices(
    kubelet: Kubelet, pods: dict[str, Json], act: Callable[[Kubelet], None]
) -> None:
    act(kubelet)
    for name, before in pods.items():
        after = kubelet.until_ready(name)
        assert (ids(after), restarts(after)) == (ids(before), restarts(before)), name
        assert after["status"].get("podIP") == before["status"].get("podIP")
    with urllib.request.urlopen("http://127.0.0.1:28090/x", timeout=LIMIT_S) as answer:
        assert answer.read() == b"hi\n"
    # The kubelet goes on to work with the runtime: a new pod starts, and ends.
    kubelet.add("fresh", {"containers": [sleeper("main")]})
    kubelet.until_ready("fresh")
    kubelet.remove("fresh")
