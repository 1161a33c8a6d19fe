# SPDX-License-Identifier: Apache-2.0
"""A cluster that kubeadm makes on the emulated machine: its configuration, and what it says."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

LIMIT_S = 1200
PAUSE_S = 5
PATCHES = "/etc/criagent-patches"
# What kubectl says when the API server could not do it in its own ten seconds, and when the request
# that was given up had been done all the same.
_NO_TIME = re.compile(
    "context deadline exceeded|imeout|etcdserver: request timed out|connection refused|: EOF"
)
_DONE_BEFORE = re.compile("AlreadyExists|NotFound")
# Longer limits and less work, by kind of document: the machine is some twenty times slower. No
# elections, no controller that watches every kind of object, no waiting for the disk.
SLOW = {
    "InitConfiguration": f"""patches: {{directory: {PATCHES}}}
timeouts:
  controlPlaneComponentHealthCheck: 40m
  kubeletHealthCheck: 20m
  kubernetesAPICall: 20m
  etcdAPICall: 20m
""",
    "ClusterConfiguration": """kubernetesVersion: v1.36.3
controllerManager:
  extraArgs:
  - {name: leader-elect, value: "false"}
  - {name: node-monitor-grace-period, value: 10m}
  - {name: controllers, value: "*,-garbage-collector-controller,-resourcequota-controller"}
scheduler:
  extraArgs:
  - {name: leader-elect, value: "false"}
etcd:
  local:
    extraArgs:
    - {name: heartbeat-interval, value: "1000"}
    - {name: election-timeout, value: "20000"}
    - {name: unsafe-no-fsync, value: "true"}
""",
    # The controller manager ends when the API server is slow: it is soon started again.
    "KubeletConfiguration": """runtimeRequestTimeout: 10m
crashLoopBackOff: {maxContainerRestartPeriod: 10s}
featureGates: {KubeletCrashLoopBackOffMax: true}
""",
}


def write_patches() -> None:
    """Have kubeadm write liveness probes that do not kill what is only slow."""
    Path(PATCHES).mkdir()
    names = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
    for name in names:
        probe = {"timeoutSeconds": 120, "periodSeconds": 60, "failureThreshold": 60}
        spec = {"containers": [{"name": name, "livenessProbe": probe}]}
        Path(PATCHES, f"{name}+strategic.json").write_text(json.dumps({"spec": spec}))


class Cluster:
    """Commands on a cluster of one node. `enter` is what runs a command on that node."""

    def __init__(self, kubeconfig: str, enter: Sequence[str] = ()) -> None:
        self.environment = {**os.environ, "KUBECONFIG": kubeconfig}
        self._enter = enter

    def run(self, *command: str, limit_s: float = LIMIT_S) -> str:
        """Output of a command, which must succeed."""
        done = self._done(*command, limit_s=limit_s)
        if done.returncode:
            self.report()
        output = done.stdout[-2000:] + done.stderr[-2000:]
        assert done.returncode == 0, f"{' '.join(command)}: {output}"
        return done.stdout

    def kubectl(self, *words: str) -> str:
        """Output of kubectl, which must succeed: again while the API server has no time for it."""
        end, repeated = time.monotonic() + LIMIT_S, False
        while True:
            done = self._done("kubectl", "--request-timeout=300s", *words)
            if not done.returncode or (repeated and _DONE_BEFORE.search(done.stderr)):
                return done.stdout
            if not _NO_TIME.search(done.stderr) or time.monotonic() > end:
                self.report()
                raise AssertionError(f"kubectl {' '.join(words)}: {done.stderr[-2000:]}")
            repeated = True

    def asked(self, *words: str) -> str:
        """What kubectl finds, or nothing: a busy API server may not answer in time."""
        done = self._done("kubectl", "--request-timeout=300s", *words)
        return done.stdout if done.returncode == 0 else ""

    def is_ready(self) -> bool:
        """Whether the node is."""
        path = '{.items[*].status.conditions[?(@.type=="Ready")].status}'
        return self.asked("get", "nodes", "-o", f"jsonpath={path}") == "True"

    def apply_addons(self, file: str) -> None:
        """CoreDNS and kube-proxy, by kubeadm: its calls have ten seconds, so repeat it."""
        phase = [*self._enter, "kubeadm", "init", "phase", "addon", "all", f"--config={file}"]
        self.until(lambda: self._done(*phase).returncode == 0, "kubeadm's add-ons")

    def pods(self, namespace: str) -> dict[str, bool]:
        """Names of pods, and whether each is Ready."""
        text = self.asked("get", "pods", "-o", "json", "-n", namespace)
        return {
            pod["metadata"]["name"]: any(
                one["type"] == "Ready" and one["status"] == "True"
                for one in pod["status"].get("conditions", ())
            )
            for pod in json.loads(text or '{"items": []}')["items"]
        }

    def control_plane_is_ready(self) -> bool:
        """Whether every pod that kubeadm makes is there and ready."""
        found = self.pods("kube-system")
        kinds = sorted(name.split("-")[0] for name in found)
        return kinds == ["coredns"] * 2 + ["etcd"] + ["kube"] * 4 and all(found.values())

    def until(self, holds: Callable[[], object], what: str, limit_s: float = LIMIT_S) -> None:
        """Look every five seconds, because looking is work; tell what the node says at the end."""
        end = time.monotonic() + limit_s
        while not holds():
            if time.monotonic() > end:
                self.report()
                raise AssertionError(f"{what} did not happen within {limit_s} s")
            select.select([], [], [], PAUSE_S)

    def report(self) -> None:
        """Print what the node and the cluster say."""
        for command in (
            "crictl ps -a",
            "journalctl -u kubelet --no-pager -o cat -n 40",
            "for c in $(crictl ps -aq); do echo == $c; crictl logs --tail 8 $c; done",
        ):
            self._print(*self._enter, "bash", "-c", command)
        self._print("kubectl", "--request-timeout=60s", "get", "pods", "-A", "-o", "wide")
        self._print("kubectl", "--request-timeout=60s", "get", "events", "-A")

    def _print(self, *command: str) -> None:
        done = self._done(*command)
        print("---", *command, "\n", (done.stdout + done.stderr)[-2500:], flush=True)

    def _done(self, *command: str, limit_s: float = LIMIT_S) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=limit_s,
            env=self.environment,
        )
