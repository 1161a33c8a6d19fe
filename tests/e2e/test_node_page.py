# SPDX-License-Identifier: Apache-2.0
"""The node page of a running agent: real pods and failures, nothing secret, off by its key."""

from __future__ import annotations

import urllib.request
from urllib.error import HTTPError

import grpc
import pytest

from tests.support import agent
from tests.support.cri_client import BUSYBOX, Cri, api
from tests.support.pods import Pods

pytestmark = pytest.mark.root


def page() -> str:
    with urllib.request.urlopen("http://127.0.0.1:9880/", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def test_it_shows_pods_images_and_the_last_failed_call(cri: Cri, pods: Pods) -> None:
    def change(config: api.ContainerConfig) -> None:
        config.metadata.name = "shown"
        config.envs.add(key="PASSWORD", value=b"s3cret-env")
        config.annotations["note"] = "s3cret-note"

    container_id = pods.running("sleep", "1000", "s3cret-argument", change=change)
    auth = api.AuthConfig(username="ann", password="s3cret-password")
    request = api.PullImageRequest(image=api.ImageSpec(image="no/such image"), auth=auth)
    with pytest.raises(grpc.RpcError):
        cri.image.PullImage(request, timeout=60)
    text = page()
    for part in ("RuntimeReady", BUSYBOX, "shown", container_id[:13], "PullImage", "no/such image"):
        assert part in text, part
    assert "s3cret" not in text


def test_its_key_turns_it_off() -> None:
    agent.stop()
    agent.start("[telemetry]\nstatus_page = false\n").close()
    with pytest.raises(HTTPError, match="404"):
        page()
    with urllib.request.urlopen("http://127.0.0.1:9880/healthz", timeout=10) as answer:
        assert answer.status == 200
    agent.stop()
    agent.start().close()
