# SPDX-License-Identifier: Apache-2.0
"""What newer critests ask of a runtime through NRI, asked without it.

There a plug-in holds a call up or makes it fail; here a CNI plug-in and an OCI runtime do.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from tests.support import agent
from tests.support.cri_client import api, container
from tests.support.pods import Pods
from tests.support.waiting import until

pytestmark = pytest.mark.root

FOLDER = Path("/run/contracts")
NETWORKS = Path("/etc/cni/net.d")
CREATED, STARTED, STOPPED, DELETED = range(4)
# Waits for a reader of the FIFO `wait` when the file `hold` is there; fails when `fail` is.
GATE = f"""
if [ -e {FOLDER}/hold ]; then echo here > {FOLDER}/came; read x < {FOLDER}/gate; fi
if [ -e {FOLDER}/fail ]; then FAILED; fi
"""
PLUGIN = f"""#!/bin/sh
if [ "$CNI_COMMAND" = ADD ]; then
{GATE.replace("FAILED", '''echo '{"code": 100, "msg": "asked to fail"}'; exit 1''')}
echo '{{"cniVersion": "1.0.0", "ips": [{{"address": "10.70.0.2/24"}}]}}'
fi
"""
RUNTIME = f"""#!/bin/sh
case " $* " in *" create "*)
{GATE.replace("FAILED", "echo asked to fail >&2; exit 1")}
esac
exec /usr/bin/crun "$@"
"""


class Gate:
    """Holds a call up, or makes it fail."""

    def hold(self) -> None:
        (FOLDER / "came").unlink(missing_ok=True)
        (FOLDER / "hold").touch()

    def reached(self) -> None:
        until((FOLDER / "came").exists, "the call's arrival at the gate")

    def open(self) -> None:
        (FOLDER / "hold").unlink()
        (FOLDER / "gate").write_text("go\n")

    def fail(self, *, fails: bool) -> None:
        if fails:
            (FOLDER / "fail").touch()
        else:
            (FOLDER / "fail").unlink()


@pytest.fixture
def gate(pods: Pods) -> Iterator[Gate]:
    """An agent with such a network and such a runtime."""
    FOLDER.mkdir()
    os.mkfifo(FOLDER / "gate")
    for name, text in (("held", PLUGIN), ("runtime", RUNTIME)):
        (FOLDER / name).write_text(text)
        (FOLDER / name).chmod(0o755)
    NETWORKS.mkdir(parents=True, exist_ok=True)
    network = {"cniVersion": "1.0.0", "name": "held", "plugins": [{"type": "held"}]}
    (NETWORKS / "10-held.conflist").write_text(json.dumps(network))
    agent.stop()
    pods.cri = agent.start(
        f'[network]\nbackend = "cni"\ncni_bin_dirs = ["{FOLDER}"]\n'
        f'[runtime.handlers.crun]\npath = "{FOLDER}/runtime"\n'
    )
    yield Gate()
    for sandbox in pods.cri.pods():
        pods.cri.remove_pod(sandbox.id)
    agent.stop()
    (NETWORKS / "10-held.conflist").unlink()
    shutil.rmtree(FOLDER)
    agent.start().close()


def test_a_pod_is_not_shown_while_it_is_made(pods: Pods, gate: Gate) -> None:
    config = pods.config()
    gate.hold()
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(pods.cri.run, config)
        gate.reached()
        assert pods.cri.pods() == []
        assert not call.done()
        gate.open()
        sandbox = call.result(timeout=20)
    assert [found.id for found in pods.cri.pods()] == [sandbox]
    assert pods.cri.pod_status(sandbox).state == api.SANDBOX_READY


def test_a_pod_whose_making_fails_leaves_nothing_and_can_be_made_again(
    pods: Pods, gate: Gate
) -> None:
    config = pods.config()
    gate.fail(fails=True)
    with pytest.raises(grpc.RpcError) as caught:
        pods.cri.run(config)
    assert "asked to fail" in (caught.value.details() or "")
    assert pods.cri.pods() == []
    assert list(Path("/run/criagent/sandboxes").iterdir()) == []
    gate.fail(fails=False)
    sandbox = pods.cri.run(config)
    assert pods.cri.pod_status(sandbox).state == api.SANDBOX_READY


def test_a_container_is_not_shown_while_it_is_made(pods: Pods, gate: Gate) -> None:
    sandbox, config = pods.sandbox()
    gate.hold()
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(
            pods.cri.create, sandbox, container("slow", ["sleep", "1000"]), config
        )
        gate.reached()
        assert pods.cri.containers() == []
        assert (
            pods.cri.runtime.PodSandboxStatus(
                api.PodSandboxStatusRequest(pod_sandbox_id=sandbox)
            ).containers_statuses
            == []
        )
        gate.open()
        container_id = call.result(timeout=20)
    assert [(found.id, found.state) for found in pods.cri.containers()] == [(container_id, CREATED)]


def test_a_container_whose_making_fails_leaves_nothing_and_can_be_made_again(
    pods: Pods, gate: Gate
) -> None:
    sandbox, config = pods.sandbox()
    wanted = container("again", ["sleep", "1000"])
    gate.fail(fails=True)
    with pytest.raises(grpc.RpcError) as caught:
        pods.cri.create(sandbox, wanted, config)
    assert "asked to fail" in (caught.value.details() or "")
    assert pods.cri.containers() == []
    assert list(Path("/run/criagent/containers").iterdir()) == []
    gate.fail(fails=False)
    container_id = pods.cri.create(sandbox, wanted, config)
    pods.cri.start(container_id)
    assert pods.cri.status(container_id).state == api.CONTAINER_RUNNING


def test_a_stopped_pod_stays_to_be_asked_about_and_is_never_used_again(pods: Pods) -> None:
    sandbox, config = pods.sandbox()
    container_ids = [pods.running(pod=(sandbox, config)) for _ in range(3)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: pods.cri.stop_pod(sandbox), range(4)))
    assert {pods.cri.status(container_id).state for container_id in container_ids} == {
        api.CONTAINER_EXITED
    }
    assert pods.cri.pod_status(sandbox).state == api.SANDBOX_NOTREADY
    pods.cri.stop_pod(sandbox)
    with pytest.raises(grpc.RpcError) as caught:
        pods.cri.create(sandbox, container("late", ["true"]), config)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    config.metadata.attempt = 1
    again = pods.cri.run(config)
    assert again != sandbox
    assert pods.cri.pod_status(sandbox).state == api.SANDBOX_NOTREADY
    assert pods.cri.pod_status(again).state == api.SANDBOX_READY


def test_lives_are_told_in_order_with_their_metadata_also_of_a_container_that_fails(
    pods: Pods,
) -> None:
    stream = pods.cri.runtime.GetContainerEvents(api.GetEventsRequest())
    stream.initial_metadata()
    sandbox, config = pods.sandbox()
    container_id = pods.running("sh", "-c", "exit 9", pod=(sandbox, config))
    until(lambda: pods.cri.status(container_id).state == api.CONTAINER_EXITED, "the exit")
    pods.cri.remove(container_id)
    pods.cri.remove_pod(sandbox)
    told = []
    for event in stream:
        assert event.pod_sandbox_status.metadata == config.metadata
        told.append((event.container_id, event.container_event_type))
        if event.container_event_type == STOPPED and event.container_id == container_id:
            (status,) = event.containers_statuses
            assert (status.metadata.name, status.exit_code) == ("c2", 9)
        if told[-1] == (sandbox, DELETED):
            break
    stream.cancel()
    assert [kind for who, kind in told if who == container_id] == [
        CREATED,
        STARTED,
        STOPPED,
        DELETED,
    ]
    assert [kind for who, kind in told if who == sandbox] == [CREATED, STARTED, STOPPED, DELETED]
    assert told.index((sandbox, STARTED)) < told.index((container_id, CREATED))
    assert told.index((container_id, STOPPED)) < told.index((sandbox, STOPPED))
