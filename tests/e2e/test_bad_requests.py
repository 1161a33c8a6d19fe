# SPDX-License-Identifier: Apache-2.0
"""Requests that cannot work: the status, the words, and a node as before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from tests.support.cri_client import BUSYBOX, Cri, api, container
from tests.support.pods import Pods
from tests.support.refusals import refused

pytestmark = pytest.mark.root

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
EXISTS = grpc.StatusCode.ALREADY_EXISTS
WRONG = grpc.StatusCode.FAILED_PRECONDITION

Change = Callable[[api.PodSandboxConfig], object]


def host_network(config: api.PodSandboxConfig) -> None:
    config.linux.security_context.namespace_options.network = api.NODE
    config.linux.sysctls["net.ipv4.ip_forward"] = "0"


def host_ipc(config: api.PodSandboxConfig) -> None:
    config.linux.security_context.namespace_options.ipc = api.NODE
    config.linux.sysctls["kernel.shmmax"] = "1"


def another_name(config: api.PodSandboxConfig) -> None:
    config.linux.security_context.namespace_options.network = api.NODE
    config.hostname = "not-the-nodes"


def user_namespace(config: api.PodSandboxConfig) -> None:
    options = config.linux.security_context.namespace_options.userns_options
    options.mode = api.POD


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda c: c.ClearField("metadata"), INVALID, "config.metadata.name"),
        (lambda c: setattr(c.metadata, "name", "a\nb"), INVALID, "metadata.name"),
        (lambda c: setattr(c, "hostname", "a" * 65), INVALID, "hostname"),
        (lambda c: setattr(c, "hostname", "a\nb"), INVALID, "hostname"),
        (lambda c: setattr(c, "log_directory", "logs"), INVALID, "log_directory"),
        (lambda c: setattr(c, "log_directory", "/var/../etc"), INVALID, "log_directory"),
        (lambda c: c.dns_config.servers.append("1.1.1.1\nsearch evil"), INVALID, "dns_config"),
        (lambda c: c.port_mappings.add(host_port=80), INVALID, "container_port"),
        (lambda c: c.port_mappings.add(host_port=70000, container_port=1), INVALID, "70000"),
        (lambda c: c.port_mappings.add(host_port=-1, container_port=1), INVALID, "-1"),
        (
            lambda c: c.port_mappings.add(host_port=1, container_port=1, host_ip="localhost"),
            INVALID,
            "host_ip",
        ),
        (lambda c: c.linux.sysctls.update({"kernel.core_pattern": "x"}), INVALID, "namespaced"),
        (lambda c: c.linux.sysctls.update({"net.ipv4.x": "1+=2"}), INVALID, "not plain"),
        (lambda c: c.linux.sysctls.update({"net.ipv4.x": "1\n2"}), INVALID, "not plain"),
        (lambda c: c.linux.sysctls.update({"net/../kernel/x": "1"}), INVALID, "sysctl"),
        (lambda c: c.linux.sysctls.update({"net.ipv4.nonsense": "1"}), INVALID, "nonsense"),
        (host_network, INVALID, "host's network"),
        (another_name, INVALID, "uses the node's hostname"),
        (host_ipc, INVALID, "host's IPC"),
        (lambda c: setattr(c.linux, "cgroup_parent", "/a/../b"), INVALID, "cgroup_parent"),
        (user_namespace, INVALID, "0 mappings of uids"),
    ],
)
def test_bad_sandboxes_are_refused(
    pods: Pods, change: Change, code: grpc.StatusCode, words: str
) -> None:
    core = Path("/proc/sys/kernel/core_pattern").read_text()
    config = pods.config()
    change(config)
    refused(lambda: pods.cri.run(config), code, words)
    assert pods.cri.pods() == []
    assert Path("/proc/sys/kernel/core_pattern").read_text() == core
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == "1\n"


def test_an_unknown_handler_is_refused(pods: Pods) -> None:
    refused(lambda: pods.cri.run(pods.config(), handler="kata"), INVALID, '"kata"')


def test_a_taken_host_port_is_refused_until_it_is_free(pods: Pods) -> None:
    def wants_port(config: api.PodSandboxConfig) -> None:
        config.port_mappings.add(host_port=9090, container_port=80)

    first, _ = pods.sandbox(wants_port)
    refused(lambda: pods.sandbox(wants_port), EXISTS, "9090")
    pods.cri.remove_pod(first)
    pods.sandbox(wants_port)


def user(**fields: object) -> Callable[[api.ContainerConfig], object]:
    def change(config: api.ContainerConfig) -> None:
        context = config.linux.security_context
        for name, value in fields.items():
            if isinstance(value, int) and not isinstance(value, bool):
                getattr(context, name).value = value
            else:
                setattr(context, name, value)

    return change


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda c: c.ClearField("metadata"), INVALID, "config.metadata.name"),
        (lambda c: c.ClearField("image"), INVALID, "config.image.image"),
        (lambda c: setattr(c.image, "image", "no/such:image"), NOT_FOUND, "pull it first"),
        (lambda c: setattr(c.image, "image", "UPPER CASE"), INVALID, "invalid image reference"),
        (lambda c: setattr(c, "log_path", "../../etc/cron.d/x"), INVALID, "log_path"),
        (lambda c: setattr(c, "log_path", "/etc/x"), INVALID, "log_path"),
        (lambda c: setattr(c, "log_path", "a\nb"), INVALID, "log_path"),
        (lambda c: c.mounts.add(container_path="/x", host_path="relative"), INVALID, "host_path"),
        (lambda c: c.mounts.add(container_path="/", host_path="/tmp"), INVALID, "container_path"),
        (
            lambda c: c.mounts.add(container_path="/x/..", host_path="/tmp"),
            INVALID,
            "container_path",
        ),
        (
            lambda c: c.mounts.add(container_path="/x", host_path="/proc/nothing/here"),
            INVALID,
            "/proc/nothing/here",
        ),
        (
            lambda c: c.mounts.add(container_path="/x", host_path="/tmp", recursive_read_only=True),
            INVALID,
            "readonly",
        ),
        (lambda c: c.devices.add(host_path="/dev/none", container_path="/d"), INVALID, "none"),
        (lambda c: c.devices.add(host_path="/etc/passwd"), INVALID, "neither"),
        (
            lambda c: c.devices.add(host_path="/dev/null", permissions="rwx"),
            INVALID,
            "permissions",
        ),
        (lambda c: c.envs.add(key="A=B", value=b"x"), INVALID, "environment"),
        (lambda c: c.envs.add(key="A", value=b"\xff"), INVALID, "UTF-8"),
        (lambda c: c.envs.add(key="A", value=b"a\0b"), INVALID, "environment"),
        (user(run_as_user=2147483648), INVALID, "2147483648"),
        (user(run_as_user=-1), INVALID, "-1"),
        (user(run_as_user=4294967296), INVALID, "4294967296"),
        (user(run_as_username="-1"), INVALID, "-1"),
        (user(run_as_username="4294967296"), INVALID, "4294967296"),
        (user(run_as_username="nobody-here"), INVALID, "nobody-here"),
        (user(run_as_group=5), INVALID, "run_as_group"),
        (user(privileged=True), INVALID, "privileged"),
        (
            lambda c: c.linux.security_context.supplemental_groups.append(2**31),
            INVALID,
            "2147483648",
        ),
        (
            lambda c: c.linux.security_context.capabilities.add_capabilities.append("FLY"),
            INVALID,
            "FLY",
        ),
        (lambda c: setattr(c, "working_dir", "/proc/self/fd/7"), INVALID, "/proc"),
        (lambda c: setattr(c, "stop_signal", 99), INVALID, "99"),
        (lambda c: c.CDI_devices.add(name="a/b=c"), INVALID, "in no specification"),
        (lambda c: setattr(c, "command", ["/no/such/program"]), grpc.StatusCode.INTERNAL, "such"),
    ],
)
def test_bad_containers_are_refused(
    pods: Pods, change: Callable[[api.ContainerConfig], object], code: grpc.StatusCode, words: str
) -> None:
    sandbox, config = pods.sandbox()
    wanted = container("bad", ["sleep", "1"])
    if words == "such":
        wanted.ClearField("command")
        wanted.command.append("/no/such/program")
    elif words == "99":
        wanted.stop_signal = 99  # type: ignore[assignment]
    else:
        change(wanted)
    refused(lambda: pods.cri.create(sandbox, wanted, config), code, words)
    assert pods.cri.containers() == []
    assert not Path(pods.logs / "bad.log").exists() or code is grpc.StatusCode.INTERNAL


def test_unknown_ids_are_not_found_or_fine_as_the_kubelet_wants(cri: Cri) -> None:
    for name in ("0" * 64, "../../etc", "a\nb", "x" * 1000, "", "zz"):
        refused(lambda name=name: cri.status(name), NOT_FOUND, "not found")
        refused(lambda name=name: cri.pod_status(name), NOT_FOUND, "not found")
        refused(lambda name=name: cri.start(name), NOT_FOUND, "not found")
        cri.stop(name)
        cri.remove(name)
        cri.stop_pod(name)
        cri.remove_pod(name)
    for name in ("sha256:" + "0" * 64, "0" * 64, "no/such:image"):
        answer = cri.image.ImageStatus(api.ImageStatusRequest(image=api.ImageSpec(image=name)))
        assert not answer.HasField("image")
        cri.remove_image(name)


def test_names_are_joined_returned_or_taken(pods: Pods) -> None:
    config = pods.config()
    request = api.RunPodSandboxRequest(config=config)
    calls = [pods.cri.runtime.RunPodSandbox.future(request, timeout=30) for _ in range(5)]
    sandbox, *others = {call.result().pod_sandbox_id for call in calls}
    assert others == []
    assert pods.cri.run(config) == sandbox
    other = api.PodSandboxConfig()
    other.CopyFrom(config)
    other.hostname = "another"
    refused(lambda: pods.cri.run(other), EXISTS, sandbox)
    wanted = container("one", ["sleep", "100"])
    container_id = pods.cri.create(sandbox, wanted, config)
    assert pods.cri.create(sandbox, wanted, config) == container_id
    pods.cri.start(container_id)
    refused(lambda: pods.cri.create(sandbox, wanted, config), EXISTS, container_id)
    pods.cri.stop_pod(sandbox)
    refused(lambda: pods.cri.run(config), EXISTS, "stopped")
    refused(lambda: pods.cri.create(sandbox, wanted, config), WRONG, "not ready")


def test_a_client_that_gives_up_and_repeats_gets_the_first_calls_work(pods: Pods) -> None:
    config = pods.config()
    request = api.RunPodSandboxRequest(config=config)
    try:
        pods.cri.runtime.RunPodSandbox(request, timeout=0.002)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    sandbox = pods.cri.run(config)
    assert [found.id for found in pods.cri.pods()] == [sandbox]
    wanted = container("patient", ["sleep", "100"])
    create = api.CreateContainerRequest(
        pod_sandbox_id=sandbox, config=wanted, sandbox_config=config
    )
    try:
        pods.cri.runtime.CreateContainer(create, timeout=0.002)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    container_id = pods.cri.create(sandbox, wanted, config)
    assert [found.id for found in pods.cri.containers()] == [container_id]


def test_a_full_network_says_so_and_recovers(pods: Pods) -> None:
    def use(cidr: str) -> None:
        network = api.NetworkConfig(pod_cidr=cidr)
        runtime_config = api.RuntimeConfig(network_config=network)
        pods.cri.runtime.UpdateRuntimeConfig(
            api.UpdateRuntimeConfigRequest(runtime_config=runtime_config)
        )

    refused(lambda: use("10.0.0.0/33"), INVALID, "10.0.0.0/33")
    refused(lambda: use("10.99.0.0/31"), INVALID, "no addresses for pods")
    use("10.99.0.0/29")  # .2 to .6
    try:
        sandboxes = [pods.sandbox()[0] for _ in range(5)]
        full = grpc.StatusCode.RESOURCE_EXHAUSTED
        refused(pods.sandbox, full, "10.99.0.0/29")
        pods.cri.remove_pod(sandboxes[0])
        assert pods.cri.pod_status(pods.sandbox()[0]).network.ip == "10.99.0.2"
        assert len(pods.cri.pods()) == 5
    finally:
        for found in pods.cri.pods():
            pods.cri.remove_pod(found.id)
        use("10.88.0.0/16,fd00:10:88::/64")


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("", INVALID, "image.image"),
        ("a" * 2000, INVALID, "longer"),
        ("lower/Case", INVALID, "reference"),
        ("name:", INVALID, "tag"),
        ("name@sha256:../../x", INVALID, "registry"),
        ("name@md5:" + "0" * 32, INVALID, "digest"),
        ("name@sha256:" + "A" * 64, INVALID, "digest"),
        ("sha256:" + "0" * 64, INVALID, "not a reference"),
        ("registry.k8s.io/no/such:tag", NOT_FOUND, "not found"),
        ("a b", INVALID, "reference"),
        ("name\0:tag", INVALID, "reference"),
    ],
)
def test_bad_references_are_refused(cri: Cri, name: str, code: grpc.StatusCode, words: str) -> None:
    refused(lambda: cri.pull(name), code, words)
    assert BUSYBOX in [tag for image in cri.images() for tag in image.repo_tags]
