# SPDX-License-Identifier: Apache-2.0
"""Steps that fail and undos that fail after them: nothing is lost from sight, all can be removed.

`debug.fail_at` makes a step or an undo fail once, as the kernel or a plug-in would.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.e2e.test_restore_pod_refused import UNDOS as RESTORE_UNDOS
from tests.support import agent
from tests.support.checkpoints import COUNT, CheckpointedPod, goes_on
from tests.support.cri_client import Cri, api, container
from tests.support.metrics_page import value
from tests.support.node_state import differences, settled_state
from tests.support.pods import Pods
from tests.support.waiting import until

pytestmark = pytest.mark.root

SOURCE = Path(__file__).parents[2] / "criagent" / "runtime"
CHECKPOINTS = Path("/var/lib/criagent/checkpoints")
RUN, CREATE = "sandbox-run", "container-create"
VERBS, CONTAINER = SOURCE / "verbs", SOURCE / "container"
FILES = {
    RUN: (VERBS / "run_sandbox.py", SOURCE / "pod" / "files.py"),
    CREATE: (VERBS / "create_container.py", CONTAINER / "bundle.py", CONTAINER / "launch.py"),
}
UNDOS = {
    RUN: ("row", "addresses", "files", "namespaces", "network", "holder", "plugins"),
    CREATE: ("row", "files", "plugins", "runtime"),
}
CASES = [(verb, undo) for verb, undos in UNDOS.items() for undo in undos]
ENDINGS = {"ENOSPC": grpc.StatusCode.RESOURCE_EXHAUSTED, "cancel": grpc.StatusCode.ABORTED}


def test_every_undo_has_its_cases_here() -> None:
    """Or in the test of RestorePod, whose undos are those of RunPodSandbox and two of its own."""
    pushed = {
        file: set(re.findall(r'undo\.push\(\s*"([\w-]+)"', file.read_text()))
        for file in SOURCE.parent.rglob("*.py")
    }
    elsewhere = set(RESTORE_UNDOS) - {"row"}
    assert pushed.pop(SOURCE / "restore" / "pod.py") == elsewhere
    for verb, files in FILES.items():
        assert set().union(*(pushed.pop(file) for file in files)) == set(UNDOS[verb])
    assert not [file for file, undos in pushed.items() if undos]


@pytest.fixture
def armed(pods: Pods) -> Iterator[Callable[..., Pods]]:
    """Restarts the agent with failures; afterwards it has none."""

    def arm(*failures: str) -> Pods:
        agent.stop()
        pods.cri = agent.start(f"[debug]\nfail_at = {json.dumps(failures)}\n")
        return pods

    yield arm
    agent.stop()
    pods.cri = agent.start()


def shared_pid(config: api.PodSandboxConfig) -> None:
    """A pod with a holder, so that there is something of every kind to undo."""
    config.linux.security_context.namespace_options.pid = api.POD


def refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details() or ""


def lines(event: str) -> list[dict[str, Any]]:
    """Lines of the agent's log since its last start."""
    found = [json.loads(line) for line in agent.LOG.read_text().splitlines() if line[:1] == "{"]
    start = max(at for at, line in enumerate(found) if line["event"] == "serving")
    return [line for line in found[start:] if line["event"] == event]


@pytest.mark.parametrize("how", ["EIO", "cancel"])
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("undo", UNDOS[RUN])
def test_a_sandbox_whose_undo_fails_is_listed_and_can_be_removed(
    undo: str, ending: str, how: str, armed: Callable[..., Pods]
) -> None:
    pods = armed(f"{RUN}:ready={ending}", f"{RUN}:undo-{undo}={how}")
    before = settled_state(pods.cri)
    config = pods.config()
    shared_pid(config)
    code, text = refused(lambda: pods.cri.run(config))
    assert code is ENDINGS[ending]
    (sandbox,) = pods.cri.pods()
    assert sandbox.state == api.SANDBOX_NOTREADY
    assert sandbox.metadata == config.metadata
    if ending != "cancel":
        assert f"undo of {undo} failed" in text
        assert "stage: commit" in text
        assert f"sandbox {sandbox.id} is listed as NOTREADY; remove it" in text
    _check_log(undo, config, {"sandbox_id": sandbox.id})
    assert value("criagent_internal_failures_total", {"kind": "undo"}) == 1
    # The kubelet does not get a second one beside it, and its way of cleaning up is enough.
    code, text = refused(lambda: pods.cri.run(config))
    assert code is grpc.StatusCode.ALREADY_EXISTS
    assert sandbox.id in text
    pods.cri.stop_pod(sandbox.id)
    pods.cri.stop_pod(sandbox.id)
    pods.cri.remove_pod(sandbox.id)
    assert differences(before, settled_state(pods.cri)) == ""
    again = pods.cri.run(config)
    assert pods.cri.pod_status(again).state == api.SANDBOX_READY


@pytest.mark.parametrize("how", ["EIO", "cancel"])
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("undo", UNDOS[CREATE])
def test_a_container_whose_undo_fails_is_listed_and_can_be_removed(
    undo: str, ending: str, how: str, armed: Callable[..., Pods]
) -> None:
    pods = armed(f"{CREATE}:ready={ending}", f"{CREATE}:undo-{undo}={how}")
    sandbox, config = pods.sandbox()
    before = settled_state(pods.cri)
    work = container("main", ["sleep", "1000"])
    code, text = refused(lambda: pods.cri.create(sandbox, work, config))
    assert code is ENDINGS[ending]
    if ending != "cancel":
        assert f"undo of {undo} failed" in text
    (container_id,) = pods.cri.containers()
    assert container_id.state == api.CONTAINER_EXITED
    assert container_id.metadata.name == "main"
    _check_log(
        undo, config, {"sandbox_id": sandbox, "container": "main", "container_id": container_id.id}
    )
    code, _ = refused(lambda: pods.cri.create(sandbox, work, config))
    assert code is grpc.StatusCode.ALREADY_EXISTS
    code, _ = refused(lambda: pods.cri.start(container_id.id))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    pods.cri.stop(container_id.id)
    pods.cri.remove(container_id.id)
    assert differences(before, settled_state(pods.cri)) == ""
    again = pods.cri.create(sandbox, work, config)
    pods.cri.start(again)
    assert pods.cri.status(again).state == api.CONTAINER_RUNNING


@pytest.mark.parametrize(("verb", "undo"), CASES)
def test_what_a_failed_undo_left_survives_a_restart_and_goes_with_its_pod(
    verb: str, undo: str, armed: Callable[..., Pods]
) -> None:
    pods = armed(f"{verb}:ready", f"{verb}:undo-{undo}")
    before = settled_state(pods.cri)
    config = pods.config()
    shared_pid(config)
    if verb == CREATE:
        sandbox = pods.cri.run(config)
        refused(lambda: pods.cri.create(sandbox, container("main", ["sleep", "1000"]), config))
    else:
        refused(lambda: pods.cri.run(config))
    agent.kill()
    pods.cri = agent.start()
    (left,) = pods.cri.pods()
    pods.cri.stop_pod(left.id)
    assert {container_id.state for container_id in pods.cri.containers()} <= {api.CONTAINER_EXITED}
    pods.cri.remove_pod(left.id)
    assert differences(before, settled_state(pods.cri)) == ""


@pytest.mark.parametrize("what", ["ENOSPC", "cancel"])
@pytest.mark.parametrize(
    "point",
    [
        f"{verb}:{step}"
        for verb, files in FILES.items()
        for file in files
        for step in re.findall(rf'reach\("{verb}:([a-z-]+)"\)', file.read_text())
    ],
)
def test_a_step_that_fails_leaves_nothing_and_a_repeat_succeeds(
    point: str, what: str, armed: Callable[..., Pods]
) -> None:
    pods = armed(f"{point}={what}")
    before = settled_state(pods.cri)
    config = pods.config()
    shared_pid(config)

    def make(cri: Cri) -> str:
        sandbox = cri.run(config)
        return cri.create(sandbox, container("main", ["sleep", "1000"]), config)

    code, text = refused(lambda: make(pods.cri))
    assert code is ENDINGS[what]
    assert what == "cancel" or point in text
    if point.startswith(RUN):
        assert pods.cri.pods() == []
        assert differences(before, settled_state(pods.cri)) == ""
    assert pods.cri.containers() == []
    container_id = make(pods.cri)
    pods.cri.start(container_id)
    assert pods.cri.status(container_id).state == api.CONTAINER_RUNNING
    for sandbox in pods.cri.pods():
        pods.cri.remove_pod(sandbox.id)
    assert differences(before, settled_state(pods.cri)) == ""


@pytest.mark.parametrize("how", ["EMFILE", "ENOMEM"])
def test_a_container_whose_checkpoint_cannot_be_undone_at_once_goes_on_soon(
    how: str, armed: Callable[..., Pods], tmp_path: Path
) -> None:
    pods = armed("checkpoint:frozen=EIO", f"checkpoint:undo={how}")
    running = pods.running("sh", "-c", COUNT)
    goes_on(pods, running)
    location = tmp_path / "archive.tar"
    request = api.CheckpointContainerRequest(container_id=running, location=str(location))
    refused(lambda: pods.cri.runtime.CheckpointContainer(request, timeout=60))
    assert not location.exists()
    _check_undone(pods, running)
    pods.cri.runtime.CheckpointContainer(request, timeout=60)
    assert location.exists()


def test_a_pod_whose_checkpoint_cannot_be_undone_at_once_goes_on_soon(
    armed: Callable[..., Pods], tmp_path: Path
) -> None:
    pods = armed("checkpoint-pod:frozen=EIO", "checkpoint-pod:undo=EMFILE")
    old = CheckpointedPod(pods)
    containers = [old.add(), old.add()]
    for running in containers:
        goes_on(pods, running)
    refused(lambda: old.checkpoint(tmp_path / "output"))
    for running in containers:
        _check_undone(pods, running)
    (tmp_path / "output").rmdir()
    old.checkpoint(tmp_path / "output")


def _check_undone(pods: Pods, container_id: str) -> None:
    """It runs; what the checkpoint had on disk is gone."""
    cgroup = Path("/sys/fs/cgroup/cri") / container_id / "cgroup.events"
    until(lambda: "frozen 0" in cgroup.read_text(), "the end of the freezer")
    goes_on(pods, container_id)
    until(lambda: not list(CHECKPOINTS.iterdir()), "the end of the checkpoint's directory")


def _check_log(undo: str, config: api.PodSandboxConfig, facts: dict[str, str]) -> None:
    """The undo's line and the call's name pod and objects, and one trace joins them."""
    (failed,) = lines("undo_failed")
    (call,) = [line for line in lines("call") if line["code"] != "OK"]
    pod = {
        "pod": f"{config.metadata.namespace}/{config.metadata.name}",
        "pod_uid": config.metadata.uid,
        "trace_id": call["trace_id"],
    }
    assert failed.items() >= {**pod, **facts, "step": undo, "level": "error"}.items()
    assert call.items() >= pod.items()
