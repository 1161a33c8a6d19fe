# SPDX-License-Identifier: Apache-2.0
"""What the kubelet does when pods and images use too much of the disk.

It never evicts a static pod ("cannot evict a critical pod"), so this shows that it has the figures:
it says so of the pods that are over their limits, and of no other.
"""

from __future__ import annotations

import re

from tests.support.cri_client import BUSYBOX, DEBIAN, Cri
from tests.support.kubelet_node import LIMIT_S, NODE, Kubelet, ids, restarts, shell, until

UNUSED = "registry.k8s.io/k8s-staging-cri-tools/test-image-1:latest"
_LIMITED = {"limits": {"ephemeral-storage": "1Mi"}}


def test_pods_over_their_limits_of_storage_are_noticed(kubelet: Kubelet) -> None:
    def write(size: int, path: str) -> str:
        return f"head -c {size} /dev/zero > {path}; exec sleep 1000000"

    sandbox = {"name": "box", "emptyDir": {"sizeLimit": "1Mi"}}
    mounted = {"volumeMounts": [{"name": "box", "mountPath": "/box"}]}
    for name, size in (("over", 3 << 20), ("under", 1 << 18)):
        volumes = {
            "volumes": [sandbox],
            "containers": [shell("main", write(size, "/box/x"), **mounted)],
        }
        kubelet.add(f"volume-{name}", volumes)
        layer = shell("main", write(size, "/x"), resources=_LIMITED)
        kubelet.add(f"layer-{name}", {"containers": [layer]})
    for kind in ("volume", "layer"):
        kubelet.until_logged(rf'cannot evict a critical pod" pod="default/{kind}-over-')
    assert not re.search(r'cannot evict a critical pod" pod="default/\w+-under-', kubelet.journal())
    summary = {pod["podRef"]["name"]: pod for pod in kubelet.get("/stats/summary")["pods"]}
    (layer,) = summary[f"layer-over-{NODE}"]["containers"]
    assert 3 << 20 <= layer["rootfs"]["usedBytes"] < 4 << 20
    kubelet.remove("volume-over", "layer-over")


def test_unused_images_go_when_the_disk_is_short(kubelet: Kubelet) -> None:
    cri = Cri()
    cri.pull(UNUSED, timeout=300)
    mounted = {"volumeMounts": [{"name": "image", "mountPath": "/image"}]}
    image = {"name": "image", "image": {"reference": DEBIAN, "pullPolicy": "IfNotPresent"}}
    container = shell("main", "exec sleep 1000000", **mounted)
    kubelet.add("user", {"volumes": [image], "containers": [container]})
    first = kubelet.until_ready("user")
    # The disk is never that empty. Static pods are not evicted, so images are all it can take.
    short = {"imagefs.available": "99.9%", "nodefs.available": "0%"}
    kubelet.restart(evictionHard=short, imageMinimumGCAge="1s")
    until(lambda: UNUSED not in tags(cri), "the removal of the unused image", LIMIT_S)
    assert {BUSYBOX, DEBIAN} <= tags(cri)  # the container's own and its volume's
    kubelet.restart()
    after = kubelet.until_ready("user")
    assert (ids(after), restarts(after)) == (ids(first), restarts(first))
    cri.close()


def tags(cri: Cri) -> set[str]:
    """Names of all images."""
    return {tag for image in cri.images() for tag in image.repo_tags}
