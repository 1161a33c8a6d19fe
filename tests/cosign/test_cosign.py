# SPDX-License-Identifier: Apache-2.0
"""Images that cosign itself has signed, in both of its forms, and others that it has not."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.support import agent, signing
from tests.support.artifacts import ArtifactRegistry, artifact_registry
from tests.support.image_builder import Layer, digest, image, push
from tests.support.pods import Pods

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        shutil.which("cosign") is None, reason="cosign is not there: run tests/cosign/run"
    ),
]
FORMS = ("tag", "bundle")


class Cosign:
    """The program, with a key pair of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._run("generate-key-pair")
        self.public = folder / "cosign.pub"

    def sign(self, reference: str, form: str) -> None:
        """Attach a signature; no log and no service is asked."""
        self._run(
            "sign",
            "--yes",
            "--key=cosign.key",
            "--tlog-upload=false",
            "--use-signing-config=false",
            f"--new-bundle-format={'true' if form == 'bundle' else 'false'}",
            reference,
        )

    def _run(self, *arguments: str) -> None:
        environment = {**os.environ, "COSIGN_PASSWORD": "", "HOME": str(self._folder)}
        subprocess.run(["cosign", *arguments], cwd=self._folder, env=environment, check=True)


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> Cosign:
    return Cosign(tmp_path_factory.mktemp("keys") / "trusted")


@pytest.fixture(scope="module")
def registry(
    tmp_path_factory: pytest.TempPathFactory, trusted: Cosign
) -> Iterator[ArtifactRegistry]:
    """An image for each form and key, the trusted one and another, and one without a signature."""
    other = Cosign(tmp_path_factory.mktemp("keys") / "other")
    with artifact_registry(tmp_path_factory.mktemp("registry")) as one:
        names = [f"{who}-{form}" for who in ("trusted", "other") for form in FORMS]
        for number, name in enumerate((*names, "unsigned")):
            layer = Layer()
            layer.file("etc/number", str(number).encode())
            made = image([layer.tar()], {"Env": [f"N={number}"]})
            push(one.host, [(made, "amd64")], f"{name}:1")
            who, _, form = name.partition("-")
            if form:
                signer = trusted if who == "trusted" else other
                signer.sign(f"{one.host}/{name}@{digest(made.manifest)}", form)
        yield one


@pytest.fixture
def guarded(
    pods: Pods, registry: ArtifactRegistry, trusted: Cosign, tmp_path: Path
) -> Iterator[Pods]:
    """The agent with a policy for the registry, and with bundles."""
    policy = signing.policy(registry.host, trusted.public)
    (tmp_path / "policy.json").write_text(policy)
    agent.stop()
    pods.cri = agent.start(
        f'[registry]\nsignature_policy = "{tmp_path}/policy.json"\nsigstore_bundles = true\n'
    )
    before = {one.id for one in pods.cri.images()}
    yield pods
    for found in pods.cri.images():
        if found.id not in before:
            pods.cri.remove_image(found.id)
    agent.stop()
    pods.cri = agent.start()


def refusal(pods: Pods, name: str) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        pods.cri.pull(name)
    text = caught.value.details() or ""
    assert text.startswith(f"SignatureValidationFailed: {name}: "), text
    return text


@pytest.mark.parametrize("form", FORMS)
def test_what_cosign_signed_is_admitted(
    guarded: Pods, registry: ArtifactRegistry, form: str
) -> None:
    name = f"{registry.host}/trusted-{form}:1"
    assert guarded.cri.pull(name)
    assert name in [tag for one in guarded.cri.images() for tag in one.repo_tags]


@pytest.mark.parametrize("form", FORMS)
def test_what_another_key_signed_is_refused(
    guarded: Pods, registry: ArtifactRegistry, form: str
) -> None:
    text = refusal(guarded, f"{registry.host}/other-{form}:1")
    assert "does not count: no key of the policy made it" in text


def test_what_is_unsigned_is_refused(guarded: Pods, registry: ArtifactRegistry) -> None:
    assert refusal(guarded, f"{registry.host}/unsigned:1").endswith(": it has no signature")


def test_a_bundle_is_refused_where_names_are_wanted(
    guarded: Pods, registry: ArtifactRegistry
) -> None:
    agent.stop()
    drop_in = Path("/etc/criagent/config.d/test.toml")
    text = drop_in.read_text().replace("sigstore_bundles = true\n", "")
    guarded.cri = agent.start(text)
    refused = refusal(guarded, f"{registry.host}/trusted-bundle:1")
    assert "it has a bundle of cosign 3, which signs a digest and no name" in refused
    assert guarded.cri.pull(f"{registry.host}/trusted-tag:1")
