# SPDX-License-Identifier: Apache-2.0
"""Pulls under a signature policy and verifier programs, from a real registry."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.support import agent, signing
from tests.support.artifacts import ArtifactRegistry, artifact_registry, layer
from tests.support.cri_client import Cri, api
from tests.support.image_builder import Layer, image, push, put_blob, put_manifest
from tests.support.made_images import of
from tests.support.pods import Pods

pytestmark = pytest.mark.root

KEY = signing.new_key()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArtifactRegistry]:
    with artifact_registry(tmp_path_factory.mktemp("registry")) as one:
        files = Layer()
        files.file("bin/busybox", Path("/usr/bin/busybox").read_bytes())
        files.symlink("bin/sleep", "busybox")
        for number, name in enumerate(("signed", "unsigned", "forged")):
            made = image([files.tar()], {"Env": [f"N={number}"]})
            push(one.host, [(made, "amd64")], f"{name}:1")
            if name != "unsigned":
                sign(one, name, made.manifest, KEY if name == "signed" else signing.new_key())
        yield one


def sign(registry: ArtifactRegistry, name: str, manifest: bytes, key: object) -> None:
    """Attach a signature as cosign does."""
    sign_digest(registry, name, hashlib.sha256(manifest).hexdigest(), key)


def sign_digest(registry: ArtifactRegistry, name: str, digest: str, key: object) -> None:
    message = signing.payload(f"sha256:{digest}", f"{registry.host}/{name}")
    notes = {"dev.cosignproject.cosign/signature": signing.signed(key, message)}  # type: ignore[arg-type]  # any private key
    document, blobs = signing.attachment((message, notes))
    base = f"http://{registry.host}/v2/{name}"
    for blob in blobs:
        put_blob(base, blob)
    put_manifest(base, f"sha256-{digest}.sig", document)


@pytest.fixture
def guarded(pods: Pods, registry: ArtifactRegistry, tmp_path: Path) -> Iterator[Cri]:
    """The agent with a policy for the registry, and a folder for programs."""
    (tmp_path / "key.pub").write_bytes(signing.pem(KEY))
    (tmp_path / "policies").mkdir()
    (tmp_path / "programs").mkdir()
    policy = signing.policy(registry.host, tmp_path / "key.pub")
    (tmp_path / "policy.json").write_text(policy)
    agent.stop()
    pods.cri = agent.start(
        f'[registry]\nsignature_policy = "{tmp_path}/policy.json"\n'
        f'signature_policy_dir = "{tmp_path}/policies"\nverifier_dir = "{tmp_path}/programs"\n'
    )
    yield pods.cri
    for found in pods.cri.images():
        if any(tag.startswith(registry.host) for tag in found.repo_tags):
            pods.cri.remove_image(found.id)
    agent.stop()
    pods.cri = agent.start()


def refusal(cri: Cri, name: str, namespace: str = "") -> str:
    """The text with which a pull is refused; nothing of it is there afterwards."""
    before = {found.id for found in cri.images()}
    request = api.PullImageRequest(image=api.ImageSpec(image=name))
    request.sandbox_config.metadata.namespace = namespace
    with pytest.raises(grpc.RpcError) as caught:
        cri.image.PullImage(request, timeout=60)
    assert caught.value.code() is grpc.StatusCode.UNKNOWN
    assert {found.id for found in cri.images()} == before
    text = caught.value.details() or ""
    assert text.startswith(f"SignatureValidationFailed: {name}: "), text
    return text


def test_signed_unsigned_and_forged(
    guarded: Cri, pods: Pods, registry: ArtifactRegistry, tmp_path: Path
) -> None:
    name = f"{registry.host}/signed:1"
    guarded.pull(name)
    running = pods.running("/bin/sleep", "100000", change=of(name))
    assert guarded.status(running).state == api.CONTAINER_RUNNING
    unsigned = refusal(guarded, f"{registry.host}/unsigned:1")
    assert unsigned.endswith(
        f'{tmp_path}/policy.json rejects it (scope docker "{registry.host}"): it has no signature'
    )
    assert "no key of the policy made it" in refusal(guarded, f"{registry.host}/forged:1")


def test_an_artifact_needs_a_signature_as_an_image_does(
    guarded: Cri, pods: Pods, registry: ArtifactRegistry
) -> None:
    ref = registry.push([layer(b"weights", "model.bin", kind="application/vnd.example.model")])
    assert refusal(guarded, ref).endswith("it has no signature")
    sign_digest(registry, "artifacts", ref.rpartition(":")[2], KEY)
    guarded.pull(ref)
    mounted = pods.running(
        change=lambda config: config.mounts.add(
            container_path="/model", image=api.ImageSpec(image=ref), readonly=True
        )
    )
    assert guarded.exec(mounted, "cat", "/model/model.bin").stdout == b"weights"
    guarded.stop(mounted)
    guarded.remove(mounted)
    guarded.remove_image(ref)


def test_a_security_profile_needs_one_too(guarded: Cri, registry: ArtifactRegistry) -> None:
    ref = registry.profile({"defaultAction": "SCMP_ACT_ALLOW"})
    request = api.PullSecurityProfileRequest(
        image=api.ImageSpec(image=ref), profile_kind=api.Seccomp
    )
    with pytest.raises(grpc.RpcError) as caught:
        guarded.image.PullSecurityProfile(request, timeout=60)
    assert caught.value.code() is grpc.StatusCode.UNKNOWN
    text = caught.value.details() or ""
    assert text.startswith(f"SignatureValidationFailed: {ref}: ")
    assert text.endswith("it has no signature")
    listing = api.ListSecurityProfilesRequest()
    assert not guarded.image.ListSecurityProfiles(listing).profiles
    sign_digest(registry, "profiles", ref.rpartition(":")[2], KEY)
    guarded.image.PullSecurityProfile(request, timeout=60)
    (found,) = guarded.image.ListSecurityProfiles(listing).profiles
    assert list(found.refs) == [ref]
    guarded.image.RemoveSecurityProfile(api.RemoveSecurityProfileRequest(digest=found.digest))


def test_a_namespace_with_a_policy_of_its_own(
    guarded: Cri, registry: ArtifactRegistry, tmp_path: Path
) -> None:
    name = f"{registry.host}/unsigned:1"
    (tmp_path / "policies" / "lab.json").write_text(
        json.dumps({"default": [{"type": "insecureAcceptAnything"}]})
    )
    refusal(guarded, name, "shop")
    request = api.PullImageRequest(image=api.ImageSpec(image=name))
    request.sandbox_config.metadata.namespace = "lab"
    assert guarded.image.PullImage(request, timeout=60).image_ref


def test_a_program_rejects_what_the_policy_admits(
    guarded: Cri, registry: ArtifactRegistry, tmp_path: Path
) -> None:
    program = tmp_path / "programs" / "age"
    program.write_text("#!/bin/sh\necho too old\nexit 1\n")
    program.chmod(0o755)
    name = f"{registry.host}/signed:1"
    assert refusal(guarded, name).endswith("the image verifier age rejects it: too old")
    program.write_text("#!/bin/sh\nexit 0\n")
    assert guarded.pull(name)


def test_what_a_policy_file_lacks_is_said(
    guarded: Cri, registry: ArtifactRegistry, tmp_path: Path
) -> None:
    (tmp_path / "policy.json").write_text('{"default": [{"type": "signedBy"}]}')
    text = refusal(guarded, f"{registry.host}/signed:1")
    assert "signedBy needs GPG, which is not supported; use sigstoreSigned" in text
    data = base64.b64encode(b"no key").decode()
    (tmp_path / "policy.json").write_text(
        json.dumps({"default": [{"type": "sigstoreSigned", "keyData": data}]})
    )
    assert "its keys cannot be read" in refusal(guarded, f"{registry.host}/signed:1")
