# SPDX-License-Identifier: Apache-2.0
"""The kubelet's /checkpoint (KEP-2008), whose gate is on by default."""

from __future__ import annotations

import json
import tarfile
import urllib.error
from pathlib import Path

import pytest

from tests.support.kubelet_node import NODE, Kubelet, restarts, run, shell, until

_PLACE = Path("/var/lib/kubelet/checkpoints")
_COUNT = "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.05; done"


def test_a_container_is_checkpointed_and_goes_on(kubelet: Kubelet) -> None:
    kubelet.add("counted", {"containers": [shell("main", _COUNT)]})
    pod = kubelet.until_ready("counted")
    with kubelet.secure(f"/checkpoint/default/counted-{NODE}/main", "POST") as answer:
        (item,) = json.loads(answer.read())["items"]
    archive = Path(item)
    try:
        assert archive.parent == _PLACE
        assert archive.name.startswith(f"checkpoint-counted-{NODE}_default-main-")
        assert archive.stat().st_mode & 0o777 == 0o600
        with tarfile.open(archive) as tar:
            assert "checkpoint/inventory.img" in tar.getnames()
    finally:
        archive.unlink()
    before = run(pod, "main", "cat", "/count")
    until(lambda: run(pod, "main", "cat", "/count") != before, "the next number")
    assert restarts(pod) == {"main": 0}


def test_an_unknown_container_has_no_checkpoint(kubelet: Kubelet) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        kubelet.secure("/checkpoint/default/nobody/main", "POST")
    caught.value.close()
    assert caught.value.code == 404
    assert not list(_PLACE.iterdir())
