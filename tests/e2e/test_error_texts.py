# SPDX-License-Identifier: Apache-2.0
"""A node that runs out of something or is too slow: callers are told what, where and the cure."""

from __future__ import annotations

import json
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from tests.support import agent
from tests.support.cri_client import api, container
from tests.support.node_state import agent_pid
from tests.support.pods import Pods

pytestmark = pytest.mark.root

Code = grpc.StatusCode


@pytest.fixture
def configured(pods: Pods) -> Iterator[Callable[[str], Pods]]:
    """Restarts the agent with a configuration; afterwards it has the usual one."""

    def start(config: str) -> Pods:
        agent.stop()
        pods.cri = agent.start(config)
        return pods

    yield start
    for sandbox in pods.cri.pods():
        pods.cri.remove_pod(sandbox.id)
    agent.stop()
    pods.cri = agent.start()


def refused(call: Callable[[], object]) -> tuple[Code, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details() or ""


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


@pytest.fixture
def small_run(configured: Callable[[str], Pods]) -> Iterator[tuple[Pods, Path]]:
    """A run directory on a tmpfs of 8 MiB."""
    run = Path("/mnt/run")
    run.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=711", "run", run], check=True)
    pods = configured(f'[storage]\nrun_dir = "{run}"\n')
    yield pods, run
    (run / "filler").unlink(missing_ok=True)
    for sandbox in pods.cri.pods():
        pods.cri.remove_pod(sandbox.id)
    agent.stop()
    subprocess.run(["umount", "-R", run], check=True)
    run.rmdir()
    pods.cri = agent.start()


def test_a_full_run_directory_is_named_with_the_object_and_the_cure(
    small_run: tuple[Pods, Path],
) -> None:
    pods, run = small_run
    sandbox, config = pods.sandbox()
    fill(run / "filler")
    code, text = refused(
        lambda: pods.cri.create(sandbox, container("late", ["sleep", "1"]), config)
    )
    assert code is Code.RESOURCE_EXHAUSTED, text
    assert "No space left on device" in text
    assert str(run) in text
    assert "free space" in text
    assert [one.id for one in pods.cri.pods()] == [sandbox]
    assert pods.cri.containers() == []


def test_descriptors_that_are_used_up_are_named_with_the_key_of_the_unit(pods: Pods) -> None:
    pid = agent_pid()
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))  # those that are open stay open
    try:
        code, text = refused(pods.sandbox)
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    assert code is Code.RESOURCE_EXHAUSTED, text
    assert "Too many open files" in text
    assert "LimitNOFILE" in text
    for sandbox in pods.cri.pods():  # nothing can be undone without a descriptor
        assert sandbox.state == api.SANDBOX_NOTREADY
        assert "is listed as NOTREADY; remove it" in text
        pods.cri.remove_pod(sandbox.id)
    pods.sandbox()


def test_the_time_limit_of_a_creation_names_its_stage_and_its_key(
    configured: Callable[[str], Pods], tmp_path: Path
) -> None:
    plugins, folder = tmp_path / "bin", tmp_path / "net.d"
    plugins.mkdir()
    folder.mkdir()
    hangs = plugins / "hangs"
    hangs.write_text(
        "#!/bin/sh\ncase $CNI_COMMAND in ADD) exec sleep 1000;; VERSION) "
        'echo \'{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}\';; esac\n'
    )
    hangs.chmod(0o755)
    conflist = {"cniVersion": "1.0.0", "name": "hangs", "plugins": [{"type": "hangs"}]}
    (folder / "10-hangs.conflist").write_text(json.dumps(conflist))
    pods = configured(
        f'[network]\nbackend = "cni"\ncni_conf_dir = "{folder}"\ncni_bin_dirs = ["{plugins}"]\n'
        "[runtime]\ncreate_timeout_s = 2.0\n"
    )
    config = pods.config()
    code, text = refused(lambda: pods.cri.run(config))
    assert code is Code.DEADLINE_EXCEEDED
    assert f'sandbox "{config.metadata.name}_{config.metadata.namespace}' in text
    assert "not ready within 2 s" in text
    assert "stage: network" in text
    assert "raise runtime.create_timeout_s" in text
    assert pods.cri.pods() == []


INJECTED = [
    ("sandbox-run:namespaces=ENOMEM", Code.RESOURCE_EXHAUSTED, "stage: files and namespaces"),
    ("sandbox-run:network=EOPNOTSUPP", Code.FAILED_PRECONDITION, "modprobe"),
    ("sandbox-run:network=EPERM", Code.PERMISSION_DENIED, "criagent doctor"),
    ("sandbox-run:files=EROFS", Code.UNAVAILABLE, "stage: files and namespaces"),
    ("container-create:mount=ENODEV", Code.FAILED_PRECONDITION, "overlay"),
    ("container-create:bundle=EDQUOT", Code.RESOURCE_EXHAUSTED, "stage: specification"),
    ("container-create:mount=EIO", Code.UNAVAILABLE, "dmesg"),
    ("container-start:started=ESTALE", Code.UNAVAILABLE, "stage: OCI runtime"),
    ("container-stop:signalled=EIO", Code.UNAVAILABLE, "stage: grace period"),
    ("container-remove:runtime=EIO", Code.UNAVAILABLE, "stage: files"),
    ("sandbox-stop:network=ENOSPC", Code.RESOURCE_EXHAUSTED, "stage: network and namespaces"),
    ("sandbox-remove:files=EIO", Code.UNAVAILABLE, "stage: files"),
]


@pytest.mark.parametrize(("failure", "code", "part"), INJECTED)
def test_every_verb_passes_the_cause_of_the_kernel_on_and_can_be_repeated(
    failure: str, code: Code, part: str, configured: Callable[[str], Pods]
) -> None:
    pods = configured(f'[debug]\nfail_at = ["{failure}"]\n')
    cri, config = pods.cri, pods.config()
    sandbox = container_id = ""
    failed: list[tuple[Code, str]] = []

    def step(call: Callable[[], str | None]) -> str:
        try:
            return call() or ""
        except grpc.RpcError as error:
            failed.append((error.code(), str(error.details())))
            return call() or ""

    sandbox = step(lambda: cri.run(config))
    container_id = step(lambda: cri.create(sandbox, container("main", ["sleep", "1000"]), config))
    step(lambda: cri.start(container_id))
    assert cri.status(container_id).state == api.CONTAINER_RUNNING
    step(lambda: cri.stop(container_id, 1))
    step(lambda: cri.remove(container_id))
    step(lambda: cri.stop_pod(sandbox))
    step(lambda: cri.remove_pod(sandbox))
    assert cri.pods() == []
    ((found, text),) = failed
    assert found is code, text
    assert failure.partition("=")[0] in text
    assert part in text
