# SPDX-License-Identifier: Apache-2.0
"""AppArmor profiles of containers, where the kernel has AppArmor and where it has not."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from tests.support.cri_client import api, container
from tests.support.pods import Pods

PROFILES = Path("/sys/kernel/security/apparmor/profiles")
HERE = PROFILES.exists()
with_apparmor = pytest.mark.skipif(not HERE, reason="this kernel has AppArmor off; see tests/vm")
without_apparmor = pytest.mark.skipif(HERE, reason="this kernel has AppArmor on")

DENY = """profile criagent-test-deny flags=(attach_disconnected) {
  file,
  deny /tmp/** w,
  signal (receive) peer=unconfined,
}
profile criagent-test-deaf flags=(attach_disconnected) {
  file,
}
"""
Change = Callable[[api.ContainerConfig], None]


def profile(kind: int, name: str = "") -> Change:
    def change(config: api.ContainerConfig) -> None:
        wanted = config.linux.security_context.apparmor
        wanted.profile_type = kind  # type: ignore[assignment] # the enum's number
        wanted.localhost_ref = name

    return change


def deprecated(name: str) -> Change:
    def change(config: api.ContainerConfig) -> None:
        config.linux.security_context.apparmor_profile = name

    return change


RUNTIME_DEFAULT = profile(api.SecurityProfile.RuntimeDefault)
UNCONFINED = profile(api.SecurityProfile.Unconfined)


def refusal(pods: Pods, change: Change) -> grpc.RpcError:
    sandbox, config = pods.sandbox()
    wanted = container("refused", ["sleep", "1"])
    change(wanted)
    with pytest.raises(grpc.RpcError) as caught:
        pods.cri.create(sandbox, wanted, config)
    assert pods.cri.containers() == []
    return caught.value


@without_apparmor
@pytest.mark.parametrize(
    "change",
    [RUNTIME_DEFAULT, UNCONFINED, deprecated("runtime/default"), deprecated("unconfined")],
)
def test_without_apparmor_the_default_is_none(pods: Pods, change: Change) -> None:
    container_id = pods.running(change=change)
    assert pods.cri.exec(container_id, "true").exit_code == 0


@without_apparmor
@pytest.mark.parametrize(
    "change", [profile(api.SecurityProfile.Localhost, "mine"), deprecated("localhost/mine")]
)
def test_without_apparmor_a_profile_of_the_node_is_refused(pods: Pods, change: Change) -> None:
    error = refusal(pods, change)
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert '"mine"' in str(error.details())
    assert "AppArmor is off" in str(error.details())


def label(pods: Pods, container_id: str) -> str:
    """What the kernel says of a process in the container: profile and mode."""
    return pods.cri.exec(container_id, "cat", "/proc/self/attr/current").stdout.decode().strip()


@pytest.fixture
def deny() -> Iterator[str]:
    subprocess.run(["apparmor_parser", "-rK"], input=DENY.encode(), check=True)
    yield "criagent-test-deny"
    subprocess.run(["apparmor_parser", "-R"], input=DENY.encode(), check=True)


@with_apparmor
@pytest.mark.parametrize("change", [lambda _: None, RUNTIME_DEFAULT, deprecated("runtime/default")])
def test_the_default_profile_holds_and_lets_signals_through(pods: Pods, change: Change) -> None:
    container_id = pods.running(change=change)
    assert label(pods, container_id) == "criagent-default (enforce)"
    assert pods.cri.exec(container_id, "touch", "/tmp/x").exit_code == 0
    assert pods.cri.exec(container_id, "sh", "-c", "sleep 100 & kill $!").exit_code == 0
    pods.cri.stop(container_id, grace=0)
    assert pods.cri.status(container_id).exit_code == 137


@with_apparmor
def test_the_default_profile_comes_back_when_it_was_unloaded(pods: Pods) -> None:
    text = "profile criagent-default {}\n"
    subprocess.run(["apparmor_parser", "-R"], input=text.encode(), check=True)
    assert label(pods, pods.running()) == "criagent-default (enforce)"


@with_apparmor
def test_unconfined_and_privileged_containers_have_none(pods: Pods) -> None:
    def privileged(config: api.PodSandboxConfig | api.ContainerConfig) -> None:
        config.linux.security_context.privileged = True

    assert label(pods, pods.running(change=UNCONFINED)) == "unconfined"
    container_id = pods.running(pod=pods.sandbox(privileged), change=privileged)
    assert label(pods, container_id) == "unconfined"


@with_apparmor
@pytest.mark.parametrize("prefix", ["", "localhost/"])
def test_a_profile_of_the_node_is_enforced(pods: Pods, deny: str, prefix: str) -> None:
    container_id = pods.running(change=profile(api.SecurityProfile.Localhost, prefix + deny))
    assert label(pods, container_id) == "criagent-test-deny (enforce)"
    assert pods.cri.exec(container_id, "touch", "/tmp/x").exit_code != 0
    assert pods.cri.exec(container_id, "touch", "/root/x").exit_code == 0


@with_apparmor
@pytest.mark.parametrize("grace", [0, 30])
def test_a_container_whose_profile_takes_no_signal_is_stopped_all_the_same(
    pods: Pods, deny: str, grace: int
) -> None:
    del deny  # it loads both
    container_id = pods.running(change=profile(api.SecurityProfile.Localhost, "criagent-test-deaf"))
    pods.cri.stop(container_id, grace=grace)
    assert pods.cri.status(container_id).exit_code == 137
    pods.cri.remove(container_id)


@with_apparmor
@pytest.mark.parametrize(
    "change",
    [profile(api.SecurityProfile.Localhost, "none-such"), deprecated("localhost/none-such")],
)
def test_a_profile_that_is_not_loaded_is_refused(pods: Pods, change: Change) -> None:
    error = refusal(pods, change)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "not loaded" in str(error.details())
