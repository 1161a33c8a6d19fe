# SPDX-License-Identifier: Apache-2.0
"""Security contexts, as the kernel sees them."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.kubelet_node import Kubelet, run, shell, sleeper, states, volume

_STATUS = ["cat", "/proc/1/status"]
_NET_BIND_SERVICE = 10


def _facts(text: str) -> dict[str, str]:
    return {key: value.strip() for key, value in (line.split(":", 1) for line in text.splitlines())}


def test_users_and_groups_and_a_volume_of_the_pods_group(kubelet: Kubelet) -> None:
    script = "umask 007; touch /box/made; exec sleep 1000000"
    kubelet.add(
        "user",
        {
            "volumes": [{"name": "box", "emptyDir": {}}],
            "securityContext": {
                "runAsUser": 1000,
                "runAsGroup": 2000,
                "fsGroup": 3000,
                "supplementalGroups": [4000],
            },
            "containers": [
                shell("main", script, volumeMounts=[{"name": "box", "mountPath": "/box"}]),
                sleeper("other", securityContext={"runAsUser": 1001}),
            ],
        },
    )
    pod = kubelet.until_ready("user")
    facts = _facts(run(pod, "main", *_STATUS))
    assert facts["Uid"].split() == ["1000"] * 4
    assert facts["Gid"].split() == ["2000"] * 4
    assert set(facts["Groups"].split()) == {"2000", "3000", "4000"}
    assert _facts(run(pod, "other", *_STATUS))["Uid"].split() == ["1001"] * 4
    sandbox = volume(pod, "box")
    assert (sandbox.stat().st_gid, sandbox.stat().st_mode & 0o2070) == (3000, 0o2070)
    assert ((sandbox / "made").stat().st_uid, (sandbox / "made").stat().st_gid) == (1000, 3000)
    status = {one["name"]: one["user"]["linux"] for one in pod["status"]["containerStatuses"]}
    assert (status["main"]["uid"], status["main"]["gid"]) == (1000, 2000)


def test_capabilities_seccomp_and_a_sealed_root(kubelet: Kubelet) -> None:
    profile = Path("/var/lib/kubelet/seccomp/no-mkdir.json")
    profile.parent.mkdir(exist_ok=True)
    refusing = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [refusing]}))
    least = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    local = {"type": "Localhost", "localhostProfile": "no-mkdir.json"}
    kubelet.add(
        "least",
        {
            "containers": [
                sleeper("least", securityContext=least),
                sleeper("open", securityContext={"seccompProfile": {"type": "Unconfined"}}),
                sleeper("local", securityContext={"seccompProfile": local}),
                sleeper("privileged", securityContext={"privileged": True}),
            ]
        },
    )
    pod = kubelet.until_ready("least")
    facts = {name: _facts(run(pod, name, *_STATUS)) for name in ("least", "open", "privileged")}
    assert int(facts["least"]["CapBnd"], 16) == 1 << _NET_BIND_SERVICE
    assert (facts["least"]["NoNewPrivs"], facts["least"]["Seccomp"]) == ("1", "2")
    assert (facts["open"]["NoNewPrivs"], facts["open"]["Seccomp"]) == ("0", "0")
    node = _facts(Path("/proc/1/status").read_text())
    assert facts["privileged"]["CapBnd"] == node["CapBnd"]
    for name in ("least", "open", "local"):
        made = run(pod, name, "sh", "-c", "mkdir /made 2>&1; true")
        expected = {"least": "Read-only file system", "open": "", "local": "not permitted"}
        assert expected[name] in made, name
        assert (made == "") == (name == "open")
    kubelet.remove("least")
    profile.unlink()


def test_root_is_refused_where_it_must_not_be(kubelet: Kubelet) -> None:
    kubelet.add(
        "no-root", {"containers": [sleeper("main", securityContext={"runAsNonRoot": True})]}
    )
    kubelet.until(
        "no-root",
        lambda pod: (
            states(pod).get("main", {}).get("waiting", {}).get("reason")
            == "CreateContainerConfigError"
        ),
        "the refusal",
    )
