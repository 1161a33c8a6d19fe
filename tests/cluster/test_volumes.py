# SPDX-License-Identifier: Apache-2.0
"""What the kubelet puts into pods: ConfigMaps, Secrets, tokens; files, sub-paths, variables."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, Space, restarts
from tests.cluster.ground import Json, eventually, seconds
from tests.cluster.manifests import SLEEP, container, pod

pytestmark = pytest.mark.timeout(seconds(150))
TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"


def test_config_maps_and_secrets_are_files_and_variables(space: Space) -> None:
    space.make("configmaps", {"metadata": {"name": "plain"}, "data": {"COLOUR": "blue", "b": "2"}})
    secret = {"PASSWORD": base64.b64encode(b"s3cret\n").decode()}
    space.make("secrets", {"metadata": {"name": "hidden"}, "data": secret})
    main = container(
        "main",
        envFrom=[{"configMapRef": {"name": "plain"}, "prefix": "MY_"}],
        env=[
            {
                "name": "PASSWORD",
                "valueFrom": {"secretKeyRef": {"name": "hidden", "key": "PASSWORD"}},
            },
            {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "BOTH", "value": "$(POD)-$(MY_COLOUR)"},
        ],
        volumeMounts=[
            {"name": "plain", "mountPath": "/plain", "readOnly": True},
            {"name": "hidden", "mountPath": "/hidden"},
        ],
        securityContext={"runAsUser": 1000, "runAsGroup": 1000},
    )
    volumes = [
        {"name": "plain", "configMap": {"name": "plain"}},
        {"name": "hidden", "secret": {"secretName": "hidden", "defaultMode": 0o440}},
    ]
    made = pod("reader", main, volumes=volumes, securityContext={"fsGroup": 2000})
    space.make("pods", made)
    space.until_ready("reader")
    assert space.exec("reader", "cat", "/plain/COLOUR", "/plain/b") == "blue2"
    assert space.exec("reader", "cat", "/hidden/PASSWORD") == "s3cret\n"
    facts = space.exec("reader", "stat", "-L", "-c", "%a %u %g", "/hidden/PASSWORD")
    assert facts == "440 0 2000\n"
    assert "2000" in space.exec("reader", "id", "-G").split()
    values = dict(
        line.split("=", 1) for line in space.exec("reader", "env").splitlines() if "=" in line
    )
    assert values["MY_COLOUR"] == "blue"
    assert values["PASSWORD"] == "s3cret"
    assert values["BOTH"] == "reader-blue"
    denied = space.kubectl("exec", "reader", "--", "touch", "/plain/new", check=False)
    assert denied == ""
    assert space.exec("reader", "ls", "/plain") == "COLOUR\nb\n"


def test_a_changed_config_map_reaches_the_volume_but_not_a_sub_path(space: Space) -> None:
    space.make("configmaps", {"metadata": {"name": "changing"}, "data": {"file": "old"}})
    mounts = [
        {"name": "whole", "mountPath": "/whole"},
        {"name": "whole", "mountPath": "/etc/one-file", "subPath": "file"},
    ]
    volumes = [{"name": "whole", "configMap": {"name": "changing"}}]
    main = container(
        "main", ("sh", "-c", 'trap "exit 0" TERM; sleep 1000000 & wait'), volumeMounts=mounts
    )
    space.make("pods", pod("watcher", main, volumes=volumes))
    space.until_ready("watcher")
    files = ("/whole/file", "/etc/one-file")
    assert space.exec("watcher", "cat", *files) == "oldold"
    space.patch("configmaps", "changing", {"data": {"file": "new"}})
    eventually(lambda: space.exec("watcher", "cat", "/whole/file") == "new", "the new content", 60)
    assert space.exec("watcher", "cat", *files) == "newold"
    # A container that starts anew has the new content in both.
    space.kubectl("exec", "watcher", "--", "kill", "1", check=False)  # which may take it along
    space.until("pods", "watcher", lambda one: restarts(one) == 1 and _runs(one), "the restart")
    assert space.exec("watcher", "cat", *files) == "newnew"


def _runs(one: Json) -> bool:
    return all("running" in status["state"] for status in one["status"]["containerStatuses"])


def test_sub_paths_of_a_directory(space: Space) -> None:
    first = container(
        "first",
        ("sh", "-c", "mkdir -p /all/dir; echo here > /all/dir/file; ln -s /etc /all/out"),
        volumeMounts=[{"name": "box", "mountPath": "/all"}],
    )
    main = container(
        "main",
        volumeMounts=[
            {"name": "box", "mountPath": "/only", "subPath": "dir", "readOnly": True},
            {"name": "box", "mountPath": "/named", "subPathExpr": "of-$(POD)"},
            {"name": "box", "mountPath": "/etc/single", "subPath": "dir/file"},
        ],
        env=[{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
    )
    space.make(
        "pods",
        pod("parts", main, initContainers=[first], volumes=[{"name": "box", "emptyDir": {}}]),
    )
    uid = space.until_ready("parts")["metadata"]["uid"]
    assert space.exec("parts", "cat", "/only/file", "/etc/single") == "here\nhere\n"
    space.exec("parts", "touch", "/named/made")
    volume = Path(f"/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~empty-dir/box")
    assert (volume / "of-parts/made").exists()
    space.kubectl("exec", "parts", "--", "touch", "/only/made", check=False)
    assert not (volume / "dir/made").exists()


def test_a_pod_has_a_token_that_the_server_takes(cluster: Cluster, space: Space) -> None:
    space.make("pods", pod("caller"))
    space.until_ready("caller")
    token = space.exec("caller", "cat", f"{TOKEN}/token")
    assert space.exec("caller", "cat", f"{TOKEN}/namespace") == space.name
    authority = space.exec("caller", "cat", f"{TOKEN}/ca.crt")
    assert authority == cluster.plane.authority.certificate.read_text()
    api = cluster.plane.anonymous()
    api.headers["Authorization"] = f"Bearer {token}"
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    told = api.post("apis/authentication.k8s.io/v1/selfsubjectreviews", review)
    user = told["status"]["userInfo"]
    assert user["username"] == f"system:serviceaccount:{space.name}:default"
    assert user["extra"]["authentication.kubernetes.io/pod-name"] == ["caller"]


def test_a_projected_volume_holds_everything_together(space: Space) -> None:
    space.make("configmaps", {"metadata": {"name": "part"}, "data": {"one": "1"}})
    sources = [
        {"configMap": {"name": "part", "items": [{"key": "one", "path": "deep/er/one"}]}},
        {"serviceAccountToken": {"path": "token", "audience": "them", "expirationSeconds": 600}},
        {"downwardAPI": {"items": [{"path": "uid", "fieldRef": {"fieldPath": "metadata.uid"}}]}},
    ]
    main = container("main", SLEEP, volumeMounts=[{"name": "all", "mountPath": "/all"}])
    volumes = [{"name": "all", "projected": {"sources": sources}}]
    space.make("pods", pod("gathered", main, volumes=volumes))
    uid = space.until_ready("gathered")["metadata"]["uid"]
    assert space.exec("gathered", "cat", "/all/deep/er/one", "/all/uid") == f"1{uid}"
    claims = space.exec("gathered", "cat", "/all/token").split(".")[1]
    assert json.loads(base64.urlsafe_b64decode(claims + "=="))["aud"] == ["them"]
