# SPDX-License-Identifier: Apache-2.0
"""A cluster of one node on criagent: control plane, kubelet, kube-proxy, and kubectl."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.cluster.api_client import path_of
from tests.cluster.control_plane import PODS, ControlPlane
from tests.cluster.ground import Json, Program, dump, eventually, fetch, seconds, this_ground
from tests.support.cri_client import Cri, api

_KUBELET = Path("/var/lib/kubelet")
_NODE = "api/v1/nodes/{}"


class Cluster:
    """Starts at construction; `close` leaves the node as it was."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ground = this_ground()
        self.proxy_mode = ""
        self._proxy: Program | None = None
        self.ground.prepare()
        try:
            self.plane = ControlPlane(directory, self.ground)
            self.api = self.plane.api
            self._start_kubelet()
            self._until_network(self.until_node("True"))
            self.set_proxy("nftables")
        except BaseException:
            print(self.ground.kubelet_log())
            self.close()
            raise

    @property
    def node(self) -> str:
        return self.ground.node

    def close(self) -> None:
        """End everything in its order: pods by the kubelet, then the programs."""
        if hasattr(self, "plane"):
            with contextlib.suppress(OSError):
                self._end_pods()
            self.stop_proxy()
            self.ground.stop_kubelet()
            self.plane.stop()
            self._remove_sandboxes()
        self.ground.clean()
        shutil.rmtree(_KUBELET, ignore_errors=True)
        shutil.rmtree("/var/log/pods", ignore_errors=True)
        shutil.rmtree("/var/log/containers", ignore_errors=True)

    def set_proxy(self, mode: str) -> None:
        """Have kube-proxy run in that mode; without rules of another one."""
        if mode == self.proxy_mode:
            return
        self.stop_proxy()
        config = self.plane.authority.kubeconfig(self.plane.server, "system:kube-proxy")
        document = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": mode,
            "clusterCIDR": PODS,
            "hostnameOverride": self.node,
            "clientConnection": {"kubeconfig": str(config)},
            "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s"},
        }
        file = dump(document, self.directory / "kube-proxy.json")
        log = self.directory / "kube-proxy.log"
        proxy = self._proxy = Program(log, "kube-proxy", f"--config={file}")
        self.proxy_mode = mode

        def ready() -> bool:
            proxy.check()
            return fetch("http://127.0.0.1:10256/healthz") != ""

        eventually(ready, "the first rules of kube-proxy")

    def stop_proxy(self) -> None:
        """End kube-proxy and take its rules away."""
        if self._proxy:
            self._proxy.stop()
            subprocess.run(["kube-proxy", "--cleanup"], capture_output=True, check=False)
        self._proxy, self.proxy_mode = None, ""

    def _start_kubelet(self) -> None:
        authority = self.plane.authority
        config = authority.kubeconfig(self.plane.server, f"system:node:{self.node}", "system:nodes")
        certificate, key = authority.sign("kubelet-server", names=f"IP:{self.ground.address}")
        document = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": "unix:///run/criagent/criagent.sock",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(authority.certificate)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(certificate),
            "tlsPrivateKeyFile": str(key),
            "failSwapOn": False,
            "runtimeRequestTimeout": "10m",
            # what is there is enough, however full the disk of the machine is
            "evictionHard": {"memory.available": "50Mi"},
            "imageGCHighThresholdPercent": 100,
            # changes of volumes and of the node's state are seen soon
            "syncFrequency": f"{seconds(2):.0f}s",
            "nodeStatusUpdateFrequency": f"{seconds(2):.0f}s",
            "volumeStatsAggPeriod": f"{seconds(2):.0f}s",
            "crashLoopBackOff": {"maxContainerRestartPeriod": "1s"},
            "featureGates": {"KubeletCrashLoopBackOffMax": True},
            **self.ground.kubelet_settings,
        }
        file = dump(document, self.directory / "kubelet.json")
        self.ground.start_kubelet(
            self.directory / "kubelet.log",
            "kubelet", f"--config={file}", f"--kubeconfig={config}",
            f"--hostname-override={self.node}", f"--node-ip={self.ground.address}",
        )  # fmt: skip

        def healthy() -> bool:
            self.ground.check_kubelet()
            return fetch("http://127.0.0.1:10248/healthz") == "ok"

        eventually(healthy, "a healthy kubelet", 60)

    def _until_network(self, node: Json) -> None:
        """Wait until pods get addresses of the range that the cluster has given to the node."""
        has = ["ip", "-o", "-4", "address", "show", "dev", "cri0"]

        def told() -> bool:
            given = self.api.get(_NODE.format(node["metadata"]["name"]))["spec"].get("podCIDR")
            network = str(given).rpartition(".")[0]
            done = subprocess.run(has, capture_output=True, text=True, check=False)
            return f" {network}." in done.stdout

        eventually(told, "the node's pod CIDR", 60)

    def until_node(self, ready: str, limit_s: float = 60) -> Json:
        """The node, once its condition Ready says so."""

        def holds(nodes: list[Json]) -> bool:
            return [_condition(node, "Ready") for node in nodes] == [ready]

        what = f"node condition Ready={ready}"
        return self.api.until("api/v1/nodes", holds, what, seconds(limit_s))[0]

    def kubectl(
        self,
        *words: str,
        stdin: bytes | None = None,
        check: bool = True,
        limit_s: float = 60,
    ) -> str:
        """Standard output; AssertionError with both streams when it must not fail and does."""
        try:
            done = subprocess.run(
                ["kubectl", *words],
                input=stdin if stdin is not None else b"",
                capture_output=True,
                env=self.environment(),
                timeout=seconds(limit_s),
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            seen = f"{late.stdout!r} {late.stderr!r}"
            raise AssertionError(f"kubectl {' '.join(words)} hangs: {seen}") from late
        text = done.stdout.decode(errors="replace")
        failure = done.stderr.decode(errors="replace")
        assert not check or done.returncode == 0, f"kubectl {' '.join(words)}: {text}{failure}"
        return text

    def environment(self) -> dict[str, str]:
        """What kubectl needs."""
        return {**os.environ, "KUBECONFIG": str(self.plane.admin), "HOME": str(self.directory)}

    def kubelet(self, path: str) -> str:
        """What the kubelet answers, through the API server."""
        return self.api.text("GET", f"{_NODE.format(self.node)}/proxy/{path}")

    def space(self, name: str) -> Space:
        """A new namespace, once pods can be made in it."""
        self.api.post("api/v1/namespaces", {"metadata": {"name": name}})
        self.api.until(path_of("serviceaccounts", name), bool, "the service account")
        return Space(self, name)

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Print what the cluster says when the block fails."""
        try:
            yield
        except Exception:
            print(self.kubectl("get", "pods", "-A", "-o", "wide", check=False))
            events = self.kubectl("get", "events", "-A", check=False)
            print("\n".join(events.splitlines()[-30:]))
            print(self.ground.kubelet_log())
            raise

    def _end_pods(self) -> None:
        for space in self.api.items("api/v1/namespaces"):
            if not space["metadata"]["name"].startswith(("kube-", "default")):
                self.api.delete(f"api/v1/namespaces/{space['metadata']['name']}")
        self.api.until("api/v1/pods", lambda pods: not pods, "the end of all pods", seconds(60))
        cri = Cri()
        eventually(
            lambda: (
                not any(one.state == api.CONTAINER_RUNNING for one in cri.containers())
                and not any(sandbox.state == api.SANDBOX_READY for sandbox in cri.pods())
                and str(_KUBELET) not in Path("/proc/mounts").read_text()
            ),
            "the end of all containers, sandboxes and volumes",
            60,
        )
        cri.close()

    @staticmethod
    def _remove_sandboxes() -> None:
        """What the kubelet's garbage collection, which comes once a minute, would do."""
        cri = Cri()
        for sandbox in cri.pods():
            cri.remove_pod(sandbox.id)
        cri.close()


class Space:
    """A namespace of the cluster and what is in it."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.api, self.name = cluster, cluster.api, name

    def kubectl(self, *words: str, **options: Any) -> str:
        return self.cluster.kubectl(f"--namespace={self.name}", *words, **options)

    def make(self, kind: str, document: Json) -> Json:
        """Create an object."""
        return self.api.post(path_of(kind, self.name), document)

    def get(self, kind: str, name: str) -> Json:
        return self.api.get(path_of(kind, self.name, name))

    def patch(self, kind: str, name: str, change: Json) -> None:
        self.api.patch(path_of(kind, self.name, name), change)

    def delete(self, kind: str, name: str) -> None:
        self.api.delete(path_of(kind, self.name, name))

    def until(self, kind: str, name: str, holds: Any, what: str, limit_s: float = 60) -> Json:
        """An object by its name, once it is there and `holds`."""

        def one(objects: list[Json]) -> bool:
            return len(objects) == 1 and bool(holds(objects[0]))

        path = f"{path_of(kind, self.name)}?fieldSelector=metadata.name={name}"
        what = f"{what} of {name}"
        with self.cluster.explained():
            return self.api.until(path, one, what, seconds(limit_s))[0]

    def until_ready(self, name: str) -> Json:
        """A pod, once it is ready."""
        return self.until("pods", name, lambda pod: _condition(pod, "Ready") == "True", "readiness")

    def until_gone(self, name: str) -> None:
        """Until there is no such pod."""
        path = f"{path_of('pods', self.name)}?fieldSelector=metadata.name={name}"
        with self.cluster.explained():
            self.api.until(path, lambda pods: not pods, f"the end of pod {name}", seconds(60))

    def until_pods(self, app: str, holds: Any, what: str, limit_s: float = 60) -> list[Json]:
        """All pods with that label, once `holds` of them."""
        path = f"{path_of('pods', self.name)}?labelSelector=app%3D{app}"
        with self.cluster.explained():
            return self.api.until(path, holds, f"{what} of {app}", seconds(limit_s))

    def pods(self, app: str) -> list[Json]:
        """Pods with that label which are not being deleted."""
        path = f"{path_of('pods', self.name)}?labelSelector=app%3D{app}"
        found = self.api.items(path)
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def logs(self, name: str, *words: str) -> str:
        return self.kubectl("logs", name, *words)

    def exec(self, name: str, *command: str) -> str:
        """Output of a command in the first container of a pod."""
        return self.kubectl("exec", name, "--", *command)


def _condition(thing: Json, kind: str) -> str:
    for one in thing.get("status", {}).get("conditions", ()):
        if one["type"] == kind:
            return str(one["status"])
    return ""


def restarts(pod: Json) -> int:
    """Restarts of all its containers."""
    return sum(one["restartCount"] for one in pod["status"].get("containerStatuses", ()))
