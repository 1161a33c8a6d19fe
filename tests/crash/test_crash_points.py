# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at every crash point; then the kubelet's retry, a whole life, and a node as before.

One life of a pod goes through every verb: pull, run, create, start, stop, remove, remove image. The
agent is armed to die at one point of it, and to die there again when the call that failed is
repeated as the kubelet would. Then the life goes on to its end, and nothing of it may be left in
the node.
"""

from __future__ import annotations

import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from criagent._proto import admin_pb2, admin_pb2_grpc
from criagent.config.storage_drivers import KNOWN
from tests.support import agent
from tests.support.artifacts import artifact_registry
from tests.support.cri_client import BUSYBOX, Cri, api, container, pod
from tests.support.node_state import address_owners, differences, settled_state
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.crash]

_REACH = re.compile(r'faults\.reach\("([^"]+)"\)')
_TRAP = "trap 'exit 7' TERM; : > /trapped; while :; do sleep 0.05; done"
# Reached only by a pod with a user namespace, with a runtime that maps the ids of no volume.
_MAPPED = re.compile("user-namespace|idmapped")
# Reached only when the grace period is over before the container is.
_WITHOUT_GRACE = {"container-stop:killed"}


def points() -> list[str]:
    """Every point that the source names, but those of storage drivers (`tests/storage`), of their
    change (`tests/e2e/test_storage_migrate.py`), of handlers with drivers of their own
    (`tests/e2e/test_handler_storage.py`), of the command reset (`tests/e2e/test_reset.py`) and of
    quotas, which the node's kernel lacks.
    """
    elsewhere = ("storage-migrate", "unpack-image", "reset", "container-limit")
    source = Path(__file__).parents[2] / "criagent"
    found = {p for f in source.rglob("*.py") for p in _REACH.findall(f.read_text())}
    return sorted(p for p in found if p.partition(":")[0] not in (*KNOWN, *elsewhere))


def lives() -> list[tuple[str, str]]:
    """Every point, with the handler of the pod that reaches it, "" = the default one. Only runc
    maps the ids of no volume itself.
    """
    found = []
    for point in points():
        if point.startswith("restore"):
            found += [(point, "runc"), (point, "crun")]
        else:
            found.append((point, "runc" if _MAPPED.search(point) else ""))
    return found


class Life:
    """The steps of one pod's life; each may be repeated after a crash."""

    def __init__(self, cri: Cri, point: str, handler: str, profile: str) -> None:
        self.cri = cri
        self.profile = profile
        self.grace = 0 if point in _WITHOUT_GRACE else 20
        mapped = _MAPPED.search(point) is not None
        self.restored = point.startswith("restore")
        self.checkpointed = self.restored or point.startswith("checkpoint")
        self.handler = handler
        self.ids = [api.IDMapping(host_id=65536, length=65536)] if mapped else []
        self.config = pod(
            "crash",
            log_directory="/tmp/crash-logs",
            port_mappings=[api.PortMapping(container_port=80, host_port=8081)],
        )
        # A shared PID namespace, so that the holder's points are passed too.
        self.config.linux.security_context.namespace_options.pid = api.POD
        if mapped:
            userns = self.config.linux.security_context.namespace_options.userns_options
            userns.uids.extend(self.ids)
            userns.gids.extend(self.ids)
        self.sandbox = self.container_id = ""
        self.new_sandbox = self.new_id = ""
        self.container = api.ContainerConfig()
        self.archives = 0
        self.outputs: list[Path] = []

    def steps(self) -> Iterator[Callable[[], None]]:
        yield self.pull
        yield self.tag
        yield self.pull_profile
        yield self.run
        yield self.create
        yield self.start
        yield self.rotate
        if self.checkpointed:
            yield self.checkpoint
            yield self.checkpoint_pod
        if self.restored:
            yield self.restore
            yield self.start_restored
            yield self.end_restored
        yield self.stop
        yield lambda: self.cri.remove(self.container_id)
        yield lambda: self.cri.stop_pod(self.sandbox)
        yield self.depart
        yield lambda: self.cri.remove_pod(self.sandbox)
        yield lambda: self.cri.remove_image(BUSYBOX)
        yield self.remove_profile

    def pull(self) -> None:
        self.cri.pull(BUSYBOX)

    def tag(self) -> None:
        request = admin_pb2.TagImageRequest(image=BUSYBOX, tag="local/crash:1")
        admin_pb2_grpc.AdminStub(self.cri.channel).TagImage(request)
        assert len(self.cri.images()) == 1
        assert {BUSYBOX, "docker.io/local/crash:1"} == set(self.cri.images()[0].repo_tags)

    def pull_profile(self) -> None:
        image = api.ImageSpec(image=self.profile)
        request = api.PullSecurityProfileRequest(image=image, profile_kind=api.Seccomp)
        self.cri.image.PullSecurityProfile(request)
        assert [list(one.refs) for one in self.profiles()] == [[self.profile]]

    def remove_profile(self) -> None:
        digest = self.profile.partition("@")[2]
        self.cri.image.RemoveSecurityProfile(api.RemoveSecurityProfileRequest(digest=digest))
        assert self.profiles() == []

    def profiles(self) -> list[api.SecurityProfileInfo]:
        request = api.ListSecurityProfilesRequest()
        return list(self.cri.image.ListSecurityProfiles(request).profiles)

    def run(self) -> None:
        self.sandbox = self.cri.run(self.config, handler=self.handler)
        assert [sandbox.id for sandbox in self.cri.pods()] == [self.sandbox]

    def create(self) -> None:
        config = container("main", ["sh", "-c", _TRAP])
        if not self.checkpointed:
            config.linux.security_context.namespace_options.pid = api.POD
        mount = config.mounts.add(container_path="/volume", readonly=True, image_sub_path="etc")
        mount.image.image = BUSYBOX
        config.mounts.add(
            container_path="/logs",
            host_path="/tmp/crash-logs",
            uidMappings=self.ids,
            gidMappings=self.ids,
        )
        self.container = config
        self.container_id = self.cri.create(self.sandbox, config, self.config)
        assert [container_id.id for container_id in self.cri.containers()] == [self.container_id]

    def start(self) -> None:
        self.cri.start(self.container_id)
        assert self.cri.status(self.container_id).state == api.CONTAINER_RUNNING
        assert self.cri.exec(self.container_id, "echo", "alive").stdout == b"alive\n"
        until(
            lambda: not self.cri.exec(self.container_id, "test", "-e", "/trapped").exit_code,
            "the trap",
        )

    def rotate(self) -> None:
        log = Path(self.cri.status(self.container_id).log_path)
        if log.exists():
            log.rename(f"{log}.old")
        self.cri.runtime.ReopenContainerLog(
            api.ReopenContainerLogRequest(container_id=self.container_id)
        )
        assert log.exists()
        assert not Path(f"{log}.tmp").exists()

    def checkpoint(self) -> None:
        """As the kubelet: an archive of another name each time."""
        archives = Path("/tmp/crash-checkpoints")
        archives.mkdir(exist_ok=True)
        self.archives += 1
        location = archives / f"{self.archives}.tar"
        try:
            self.cri.runtime.CheckpointContainer(
                api.CheckpointContainerRequest(
                    container_id=self.container_id, location=str(location)
                ),
                timeout=60,
            )
            assert tarfile.is_tarfile(location)
            assert self.cri.exec(self.container_id, "echo", "alive").stdout == b"alive\n"
        finally:
            complete = [tarfile.is_tarfile(found) for found in archives.iterdir()]
            shutil.rmtree(archives)
        assert all(complete)

    def checkpoint_pod(self) -> None:
        """As the kubelet: into an empty directory, another one each time."""
        self.archives += 1
        output = Path(f"/tmp/crash-pod-checkpoint-{self.archives}")
        output.mkdir(mode=0o700)
        self.outputs.append(output)
        request = api.CheckpointPodRequest(
            pod_sandbox_id=self.sandbox,
            output_path=str(output),
            container_ids=[self.container_id],
        )
        self.cri.runtime.CheckpointPod(request, timeout=60)
        complete = {"pod.json", "devshm-checkpoint.tar", f"{self.container_id}.tar"}
        found = [{path.name for path in output.iterdir()} for output in self.outputs]
        for output in self.outputs:
            shutil.rmtree(output)
        assert found[-1] == complete
        assert all(names in (set(), complete) for names in found)
        assert self.cri.exec(self.container_id, "echo", "alive").stdout == b"alive\n"

    def restore(self) -> None:
        """Under another name and uid each time; nothing is left of an attempt that failed."""
        self.archives += 1
        output = Path(f"/tmp/crash-restore-{self.archives}")
        output.mkdir(mode=0o700)
        try:
            self.cri.runtime.CheckpointPod(
                api.CheckpointPodRequest(
                    pod_sandbox_id=self.sandbox,
                    output_path=str(output),
                    container_ids=[self.container_id],
                ),
                timeout=60,
            )
            config = pod(f"restored-{self.archives}", log_directory="/tmp/crash-logs/restored")
            config.linux.CopyFrom(self.config.linux)
            request = api.RestorePodRequest(
                checkpoint_path=str(output),
                config=config,
                runtime_handler=self.handler,
                container_configs=[self.container],
            )
            response = self.cri.runtime.RestorePod(request, timeout=60)
        finally:
            shutil.rmtree(output)
        self.new_sandbox = response.pod_sandbox_id
        self.new_id = response.restored_containers[0].container_id
        assert {one.id for one in self.cri.pods()} == {self.sandbox, self.new_sandbox}
        assert {one.id for one in self.cri.containers()} == {self.container_id, self.new_id}
        assert self.cri.status(self.new_id).state == api.CONTAINER_CREATED

    def start_restored(self) -> None:
        self.cri.start(self.new_id)
        assert self.cri.status(self.new_id).state == api.CONTAINER_RUNNING
        assert self.cri.exec(self.new_id, "test", "-e", "/trapped").exit_code == 0

    def end_restored(self) -> None:
        self.cri.stop(self.new_id, 20)
        assert self.cri.status(self.new_id).exit_code == 7
        self.cri.remove_pod(self.new_sandbox)

    def stop(self) -> None:
        self.cri.stop(self.container_id, self.grace)
        status = self.cri.status(self.container_id)
        assert status.state == api.CONTAINER_EXITED
        assert status.exit_code == (7 if self.grace else 137)
        assert status.finished_at > status.started_at > status.created_at

    def depart(self) -> None:
        """The kernel removes the pod's link, and the agent then releases the addresses."""
        until(lambda: self.cri.pods() and not address_owners(), "the release of addresses")


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A seccomp profile in a registry."""
    with artifact_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry.profile({"defaultAction": "SCMP_ACT_ALLOW"})


@pytest.fixture
def idle_node() -> Iterator[dict[str, list[str]]]:
    """A running agent without pods and images, and the node's state then; the same afterwards."""
    if agent.running():
        agent.stop()
    cri = agent.start()
    yield settled_state(cri)
    cri.close()
    if not agent.running():
        agent.start().close()
    cri = Cri()
    for sandbox in cri.pods():  # after a failure, so that the next case stands alone
        cri.remove_pod(sandbox.id)
    for image in cri.images():
        cri.remove_image(image.id)
    cri.close()


def _started_again(armed: str) -> Cri:
    """Armed once more; when its recovery already dies of it, unarmed."""
    try:
        return agent.start(armed)
    except AssertionError:
        assert agent.died()
        return agent.start()


@pytest.mark.parametrize(("point", "handler"), lives())
def test_crash_is_survived_without_loss_or_leak(
    point: str, handler: str, idle_node: dict[str, list[str]], profile: str
) -> None:
    agent.stop()
    armed = f'[debug]\nkill_at = "{point}"\n'
    life = Life(agent.start(armed), point, handler, profile)
    deaths = 0
    for step in life.steps():
        while True:
            try:
                step()
                break
            except grpc.RpcError as error:
                assert agent.died(), f"{error.code()}: {error.details()}"
                deaths += 1
                life.cri.close()
                life.cri = _started_again(armed) if deaths == 1 else agent.start()
    assert deaths, f"nothing in the life of a pod reaches {point}"
    assert differences(idle_node, settled_state(life.cri)) == ""
    life.cri.close()
