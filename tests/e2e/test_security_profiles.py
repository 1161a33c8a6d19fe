# SPDX-License-Identifier: Apache-2.0
"""Security profiles from a registry: what containers are refused, and the life of a profile."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support import agent
from tests.support.artifacts import ArtifactRegistry, artifact_registry
from tests.support.cri_client import Cri, api, container
from tests.support.image_archives import command
from tests.support.images import listed, usage
from tests.support.pods import Pods
from tests.support.refusals import refused

pytestmark = pytest.mark.root

NOT_FOUND, INVALID = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT
ABSENT = f"127.0.0.1:1/profiles@sha256:{'1' * 64}"
Change = Callable[[api.ContainerConfig], None]


def refusing(*calls: str, default: str = "SCMP_ACT_ALLOW") -> dict[str, Any]:
    rule = {"names": list(calls), "action": "SCMP_ACT_ERRNO", "errnoRet": 1}
    return {"defaultAction": default, "syscalls": [rule]}


NO_CHMOD = refusing("chmod", "fchmod", "fchmodat", "fchmodat2")


def pull(cri: Cri, ref: str, **fields: Any) -> bool:
    request = api.PullSecurityProfileRequest(
        image=api.ImageSpec(image=ref, user_specified_image=ref),
        **{"profile_kind": api.Seccomp, **fields},
    )
    return bool(cri.image.PullSecurityProfile(request, timeout=60).cached)


def profiles(cri: Cri) -> dict[str, list[str]]:
    found = cri.image.ListSecurityProfiles(api.ListSecurityProfilesRequest()).profiles
    assert all(one.size > 0 for one in found)
    return {one.digest: list(one.refs) for one in found}


def remove(cri: Cri, digest: str) -> None:
    cri.image.RemoveSecurityProfile(api.RemoveSecurityProfileRequest(digest=digest))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArtifactRegistry]:
    with artifact_registry(tmp_path_factory.mktemp("registry")) as one:
        yield one


@pytest.fixture(autouse=True)
def no_profile_stays(cri: Cri) -> Iterator[None]:
    yield
    fresh = Cri()
    for digest in profiles(fresh):
        remove(fresh, digest)
    fresh.close()


def with_profile(ref: str, base: str = "") -> Change:
    def change(config: api.ContainerConfig) -> None:
        seccomp = config.linux.security_context.seccomp
        seccomp.profile_type, seccomp.oci_ref = api.SecurityProfile.OCI, ref
        if base:
            seccomp.base_profile.type = api.SecurityProfileBase.Localhost
            seccomp.base_profile.localhost_ref = base

    return change


def of(pods: Pods, handler: str) -> tuple[str, api.PodSandboxConfig]:
    """A pod of that handler."""
    config = pods.config()
    return pods.cri.run(config, handler=handler), config


def may(cri: Cri, container_id: str, *command: str) -> bool:
    done = cri.exec(container_id, *command)
    if done.exit_code:
        assert b"not permitted" in done.stderr, done
    return not done.exit_code


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_the_default_is_the_base_unless_a_file_is(
    registry: ArtifactRegistry, handler: str, cri: Cri, pods: Pods, tmp_path: Path
) -> None:
    ref = registry.profile(NO_CHMOD)
    assert pull(cri, ref) is False
    assert pull(cri, ref) is True
    file = tmp_path / "base.json"
    file.write_text(json.dumps(refusing("mkdir", "mkdirat")))
    by_default = pods.running(change=with_profile(ref), pod=of(pods, handler))
    by_file = pods.running(change=with_profile(ref, str(file)), pod=of(pods, handler))
    unshare = ("unshare", "-U", "true")  # the default refuses new namespaces
    assert not may(cri, by_default, "chmod", "700", "/tmp")
    assert may(cri, by_default, "mkdir", "/tmp/made")
    assert not may(cri, by_default, *unshare)
    assert not may(cri, by_file, "chmod", "700", "/tmp")
    assert not may(cri, by_file, "mkdir", "/tmp/made")
    assert may(cri, by_file, *unshare)


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_conditions_on_arguments_are_kept(
    registry: ArtifactRegistry, handler: str, cri: Cri, pods: Pods
) -> None:
    def condition(index: int) -> dict[str, Any]:
        return {"index": index, "value": 0o777, "op": "SCMP_CMP_EQ"}

    document = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["chmod", "fchmod"], "action": "SCMP_ACT_ERRNO", "args": [condition(1)]},
            {
                "names": ["fchmodat", "fchmodat2"],
                "action": "SCMP_ACT_ERRNO",
                "args": [condition(2)],
            },
        ],
    }
    ref = registry.profile(document)
    pull(cri, ref)
    container_id = pods.running(change=with_profile(ref), pod=of(pods, handler))
    assert not may(cri, container_id, "chmod", "777", "/tmp")
    assert may(cri, container_id, "chmod", "755", "/tmp")


def test_what_a_profile_permits_the_default_still_refuses(
    registry: ArtifactRegistry, cri: Cri, pods: Pods
) -> None:
    ref = registry.profile({"defaultAction": "SCMP_ACT_ALLOW"})
    pull(cri, ref)
    container_id = pods.running(change=with_profile(ref))
    assert not may(cri, container_id, "unshare", "-U", "true")


def test_it_is_no_image_and_counts_as_space_of_images(registry: ArtifactRegistry, cri: Cri) -> None:
    images, (used, inodes) = listed(cri), usage(cri)
    ref = registry.profile(NO_CHMOD)
    pull(cri, ref)
    assert listed(cri) == images
    (size,) = [
        one.size
        for one in cri.image.ListSecurityProfiles(api.ListSecurityProfilesRequest()).profiles
    ]
    assert usage(cri) == (used + size, inodes + 2)
    assert command("fsck").returncode == 0
    remove(cri, ref.partition("@")[2])
    assert usage(cri) == (used, inodes)


def test_it_outlives_a_restart_and_an_image_collection(
    registry: ArtifactRegistry, cri: Cri, pods: Pods
) -> None:
    ref = registry.profile(NO_CHMOD)
    pull(cri, ref)
    agent.stop()
    fresh = agent.start()
    fresh.remove_image("registry.test/nothing:1")
    assert profiles(fresh) == {ref.partition("@")[2]: [ref]}
    assert pull(fresh, ref) is True
    container_id = pods.running(change=with_profile(ref))
    assert not may(fresh, container_id, "chmod", "700", "/tmp")
    fresh.close()


def test_a_container_keeps_its_filter_when_the_profile_goes(
    registry: ArtifactRegistry, cri: Cri, pods: Pods
) -> None:
    ref = registry.profile(NO_CHMOD)
    pull(cri, ref)
    sandbox, pod = pods.sandbox()
    running, created = (container(name, ["sleep", "1000"]) for name in ("running", "created"))
    for config in (running, created):
        with_profile(ref)(config)
    first = cri.create(sandbox, running, pod)
    cri.start(first)
    second = cri.create(sandbox, created, pod)
    for _ in range(2):
        remove(cri, ref.partition("@")[2])
    cri.start(second)  # its filter is in its configuration since its creation
    for container_id in (first, second):
        assert not may(cri, container_id, "chmod", "700", "/tmp")
    later = container("later", ["sleep", "1000"])
    with_profile(ref)(later)
    refused(lambda: cri.create(sandbox, later, pod), NOT_FOUND, "has not been pulled")


def test_a_pod_and_a_container_need_a_pulled_profile(
    registry: ArtifactRegistry, cri: Cri, pods: Pods
) -> None:
    refused(lambda: pods.running(change=with_profile(ABSENT)), NOT_FOUND, "has not been pulled")
    config = pods.config()
    seccomp = config.linux.security_context.seccomp
    seccomp.profile_type, seccomp.oci_ref = api.SecurityProfile.OCI, ABSENT
    refused(lambda: cri.run(config), NOT_FOUND, "has not been pulled")
    ref = registry.profile(NO_CHMOD)
    pull(cri, ref)
    seccomp.oci_ref = ref
    assert cri.run(config)


def _base(kind: int, path: str = "") -> api.SecurityProfileBase:
    return api.SecurityProfileBase(type=kind, localhost_ref=path)  # type: ignore[arg-type] # a number


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, "needs oci_ref"),
        ({"oci_ref": "profiles:1"}, "no digest"),
        ({"oci_ref": ABSENT, "localhost_ref": "/x"}, "no localhost_ref"),
        ({"oci_ref": ABSENT, "base_profile": _base(1)}, "localhost_ref"),
        ({"oci_ref": ABSENT, "base_profile": _base(0, "/x")}, "localhost_ref"),
        ({"oci_ref": ABSENT, "base_profile": _base(1, "x")}, "absolute"),
        ({"oci_ref": ABSENT, "base_profile": _base(7)}, "unknown"),
        ({"profile_type": api.SecurityProfile.Localhost, "oci_ref": ABSENT}, "belong"),
    ],
)
def test_an_odd_request_is_refused(fields: dict[str, Any], why: str, pods: Pods) -> None:
    def change(config: api.ContainerConfig) -> None:
        profile = api.SecurityProfile(**{"profile_type": api.SecurityProfile.OCI, **fields})
        config.linux.security_context.seccomp.CopyFrom(profile)

    refused(lambda: pods.running(change=change), INVALID, why)


def test_apparmor_has_none_of_a_registry(pods: Pods) -> None:
    def change(config: api.ContainerConfig) -> None:
        profile = config.linux.security_context.apparmor
        profile.profile_type, profile.oci_ref = api.SecurityProfile.OCI, ABSENT

    refused(lambda: pods.running(change=change), INVALID, "seccomp only")


def test_a_wrong_pull_begins_with_the_word_that_ends_retries(
    registry: ArtifactRegistry, cri: Cri
) -> None:
    ref = registry.profile(b"no profile")
    for call, why in (
        (lambda: pull(cri, ref), "not a seccomp profile"),
        (lambda: pull(cri, f"{registry.host}/profiles:1"), "no digest"),
        (lambda: pull(cri, ref, profile_kind=0), "only seccomp"),
        (lambda: pull(cri, ref, profile_kind=7), "only seccomp"),
    ):
        refused(call, INVALID, "SecurityProfileInvalid: ")
        refused(call, INVALID, why)
    missing = f"{registry.host}/profiles@sha256:{'1' * 64}"
    refused(lambda: pull(cri, missing), NOT_FOUND, "not found")
    assert profiles(cri) == {}


def test_the_kubelet_is_told_that_profiles_are_supported(cri: Cri) -> None:
    assert cri.runtime.Status(api.StatusRequest()).features.seccomp_profile_oci
