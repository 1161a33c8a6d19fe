# SPDX-License-Identifier: Apache-2.0
"""Containers that end: back-off, counts, policies, messages."""

from __future__ import annotations

from pathlib import Path

from tests.support.cri_client import Cri
from tests.support.kubelet_node import Json, Kubelet, restarts, shell, states

_BOX = [{"name": "box", "mountPath": "/box"}]


def _once(path: str, first: int, then: int) -> str:
    """Ends with `first`, and with `then` when it runs again."""
    return f"[ -e /box/{path} ] && exit {then}; touch /box/{path}; exit {first}"


def _ended(pod: Json) -> dict[str, int]:
    """Exit codes of the containers that have ended."""
    return {
        name: state["terminated"]["exitCode"]
        for name, state in states(pod).items()
        if "terminated" in state
    }


def test_a_failing_container_backs_off_and_counts(kubelet: Kubelet) -> None:
    failing = "echo why > /dev/termination-log; exit 3"
    loud = "echo first; echo the last words; exit 4"
    logs = {"terminationMessagePolicy": "FallbackToLogsOnError"}
    kubelet.add("crash", {"containers": [shell("file", failing), shell("logs", loud, **logs)]})
    waiting = kubelet.until(
        "crash",
        lambda pod: (
            min(restarts(pod).values(), default=0) >= 2
            and all(
                state.get("waiting", {}).get("reason") == "CrashLoopBackOff"
                for state in states(pod).values()
            )
        ),
        "CrashLoopBackOff",
    )
    last = {
        one["name"]: one["lastState"]["terminated"]
        for one in waiting["status"]["containerStatuses"]
    }
    assert (last["file"]["exitCode"], last["file"]["reason"]) == (3, "Error")
    assert last["file"]["message"] == "why\n"
    assert (last["logs"]["exitCode"], last["logs"]["message"]) == (4, "first\nthe last words\n")
    cri = Cri()
    attempts = {
        name: max(
            container_id.metadata.attempt
            for container_id in cri.containers()
            if container_id.metadata.name == name
            and container_id.labels["io.kubernetes.pod.uid"] == waiting["metadata"]["uid"]
        )
        for name in ("file", "logs")
    }
    cri.close()
    # The counts of the kubelet are those of the runtime; one more may have come since.
    assert all(attempts[name] - count in {0, 1} for name, count in restarts(waiting).items())
    kubelet.remove("crash")


def test_restart_policies(kubelet: Kubelet, host_directory: Path) -> None:
    volumes = [{"name": "box", "hostPath": {"path": str(host_directory)}}]
    rules = [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]
    ruled = {"restartPolicy": "Never", "restartPolicyRules": rules}
    pods = {
        "never": ("Never", shell("main", "exit 3"), "Failed", 0, 3),
        "done": ("Never", shell("main", "exit 0"), "Succeeded", 0, 0),
        "on-failure": ("OnFailure", shell("main", _once("a", 5, 0)), "Succeeded", 1, 0),
        "ruled": ("Never", shell("main", _once("b", 42, 6), **ruled), "Failed", 1, 6),
    }
    for name, (policy, container, *_) in pods.items():
        container["volumeMounts"] = _BOX
        kubelet.add(name, {"restartPolicy": policy, "volumes": volumes, "containers": [container]})
    for name, (_, _, phase, count, code) in pods.items():
        pod = kubelet.until(
            name, lambda pod: pod["status"]["phase"] in {"Succeeded", "Failed"}, "its end"
        )
        assert pod["status"]["phase"] == phase, name
        assert (restarts(pod), _ended(pod)) == ({"main": count}, {"main": code}), name


def test_an_init_container_that_fails_is_retried_before_the_others_start(
    kubelet: Kubelet, host_directory: Path
) -> None:
    kubelet.add(
        "late",
        {
            "volumes": [{"name": "box", "hostPath": {"path": str(host_directory)}}],
            "initContainers": [shell("first", _once("a", 1, 0), volumeMounts=_BOX)],
            "containers": [shell("main", "exec sleep 1000000")],
        },
    )
    pod = kubelet.until("late", lambda pod: restarts(pod).get("first", 0) == 1, "the second try")
    assert "terminated" not in states(pod)["main"]
