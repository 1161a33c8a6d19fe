# SPDX-License-Identifier: Apache-2.0
"""policy.json and sigstore signatures: what is admitted, and why the rest is not."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from criagent.base.errors import AgentError, SignatureRejectedError, UnsupportedError
from criagent.cri.statuses import status_of
from criagent.image.documents.reference import parse_reference
from criagent.image.policy.admission import Rules
from criagent.image.policy.document import parse_policy
from criagent.image.policy.identity import (
    ExactReference,
    ExactRepository,
    Identity,
    MatchExact,
    MatchRepoDigestOrExact,
    MatchRepository,
    RemapIdentity,
    accepts,
)
from tests.support import signing
from tests.support.pulling import SMALL, Node, Registry, digest, name

REPOSITORY = {"type": "matchRepository"}


def written(path: Path, *default: dict[str, Any], **scopes: list[dict[str, Any]]) -> str:
    """A policy file; `scopes` are of registries."""
    path.write_text(json.dumps({"default": list(default), "transports": {"docker": scopes}}))
    return str(path)


def by_key(key: ec.EllipticCurvePrivateKey, **fields: Any) -> dict[str, Any]:
    data = base64.b64encode(signing.pem(key)).decode()
    return {"type": "sigstoreSigned", "keyData": data, "signedIdentity": REPOSITORY, **fields}


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    one = Registry()
    await one.start()
    one.image(SMALL)
    yield one
    await one.stop()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    rules = Rules(policy=str(tmp_path / "policy.json"), policy_dir=str(tmp_path / "policies"))
    one = Node(tmp_path, rules=rules)
    yield one
    await one.close()


def image_digest(registry: Registry) -> str:
    return digest(registry.content["1"])


def attach(registry: Registry, *signatures: tuple[bytes, dict[str, str]]) -> None:
    """Publish signatures of the registry's image."""
    manifest, blobs = signing.attachment(*signatures)
    for blob in blobs:
        registry.put(blob)
    tag = image_digest(registry).replace(":", "-") + ".sig"
    registry.put(manifest, signing.OCI_MANIFEST, tag)


def signature(
    registry: Registry, key: ec.EllipticCurvePrivateKey, **change: str
) -> tuple[bytes, dict[str, str]]:
    """A signature of the registry's image by `key`."""
    message = signing.payload(
        change.get("digest", image_digest(registry)),
        change.get("named", name(registry, "a/b")),
        creator="a test",
    )
    return message, {"dev.cosignproject.cosign/signature": signing.signed(key, message)}


async def rejected(node: Node, reference: str, **options: Any) -> str:
    with pytest.raises(SignatureRejectedError) as caught:
        await node.pull(reference, **options)
    assert not [path for path in node.files.sizes() if path.hex == digest(SMALL)[7:]]
    return str(caught.value)


async def test_a_signed_image_is_admitted(node: Node, registry: Registry, tmp_path: Path) -> None:
    key = signing.new_key()
    written(tmp_path / "policy.json", by_key(key))
    attach(registry, signature(registry, signing.new_key()), signature(registry, key))
    image = await node.pull(name(registry))
    assert image.repo_tags == (name(registry),)
    await node.pull(name(registry, f"a/b@{image_digest(registry)}"))


async def test_an_unsigned_image_is_rejected(
    node: Node, registry: Registry, tmp_path: Path
) -> None:
    written(tmp_path / "policy.json", by_key(signing.new_key()))
    assert await rejected(node, name(registry)) == (
        f"{name(registry)}: the signature policy {tmp_path}/policy.json rejects it (scope default)"
        ": it has no signature"
    )


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"digest": "sha256:" + "0" * 64}, f"it is for sha256:{'0' * 64}"),
        ({"named": "example.com/other"}, "it names 'example.com/other', which signedIdentity"),
    ],
)
async def test_a_signature_of_something_else_does_not_count(
    node: Node, registry: Registry, tmp_path: Path, change: dict[str, str], why: str
) -> None:
    key = signing.new_key()
    written(tmp_path / "policy.json", by_key(key))
    attach(registry, signature(registry, key, **change))
    assert why in await rejected(node, name(registry))


async def test_a_signature_by_another_key_does_not_count(
    node: Node, registry: Registry, tmp_path: Path
) -> None:
    written(tmp_path / "policy.json", by_key(signing.new_key()))
    attach(registry, signature(registry, signing.new_key()))
    assert "no key of the policy made it" in await rejected(node, name(registry))


async def test_a_changed_payload_does_not_count(
    node: Node, registry: Registry, tmp_path: Path
) -> None:
    key = signing.new_key()
    written(tmp_path / "policy.json", by_key(key))
    message, notes = signature(registry, key)
    attach(registry, (message.replace(b"a test", b"a fake"), notes))
    assert "no key of the policy made it" in await rejected(node, name(registry))


async def test_the_default_identity_needs_the_tag_in_the_signature(
    node: Node, registry: Registry, tmp_path: Path
) -> None:
    key = signing.new_key()
    data = base64.b64encode(signing.pem(key)).decode()
    written(tmp_path / "policy.json", {"type": "sigstoreSigned", "keyData": data})
    attach(registry, signature(registry, key))
    assert "matchRepoDigestOrExact" in await rejected(node, name(registry))
    attach(registry, signature(registry, key, named=name(registry)))
    await node.pull(name(registry))


async def test_all_requirements_have_to_be_met(
    node: Node, registry: Registry, tmp_path: Path
) -> None:
    first, second = signing.new_key(), signing.new_key()
    written(tmp_path / "policy.json", by_key(first), by_key(second))
    attach(registry, signature(registry, first))
    assert "no key of the policy made it" in await rejected(node, name(registry))
    attach(registry, signature(registry, first), signature(registry, second))
    await node.pull(name(registry))


async def test_the_closest_scope_counts(node: Node, registry: Registry, tmp_path: Path) -> None:
    accept, reject = {"type": "insecureAcceptAnything"}, {"type": "reject"}
    scopes = {
        f"127.0.0.1:{registry.port}": [reject],
        name(registry, "a"): [accept],
        name(registry, "a/b:2"): [reject],
    }
    registry.image(SMALL, tags=("1", "2"))
    written(tmp_path / "policy.json", reject, **scopes)
    await node.pull(name(registry))
    text = await rejected_with_layers(node, name(registry, "a/b:2"))
    assert text.endswith(f'(scope docker "{name(registry, "a/b:2")}"): reject')


async def rejected_with_layers(node: Node, reference: str) -> str:
    """As `rejected`, for an image whose layers are there by another name."""
    with pytest.raises(SignatureRejectedError) as caught:
        await node.pull(reference)
    return str(caught.value)


async def test_a_namespace_has_a_policy_of_its_own(
    node: Node, registry: Registry, tmp_path: Path
) -> None:
    (tmp_path / "policies").mkdir()
    written(tmp_path / "policy.json", {"type": "reject"})
    written(tmp_path / "policies" / "lab.json", {"type": "insecureAcceptAnything"})
    await rejected(node, name(registry), namespace="shop")
    await rejected(node, name(registry), namespace="../lab")
    await node.pull(name(registry), namespace="lab")
    assert "reject" in await rejected_with_layers(node, name(registry))


async def test_a_policy_that_cannot_be_read_rejects(
    node: Node, registry: Registry, tmp_path: Path
) -> None:
    assert "policy.json cannot be used" in await rejected(node, name(registry))
    (tmp_path / "policy.json").write_text('{"default": []}')
    assert "cannot be used: Expected `array` of length >= 1" in await rejected(node, name(registry))


async def test_a_missing_key_rejects(node: Node, registry: Registry, tmp_path: Path) -> None:
    written(tmp_path / "policy.json", {"type": "sigstoreSigned", "keyPath": "/nowhere.pub"})
    text = await rejected(node, name(registry))
    assert "its keys cannot be read: [Errno 2] No such file or directory: '/nowhere.pub'" in text


async def test_a_registry_that_fails_is_no_missing_signature(
    node: Node, registry: Registry, tmp_path: Path
) -> None:
    from aiohttp import web

    written(tmp_path / "policy.json", by_key(signing.new_key()))

    async def fails(request: web.BaseRequest) -> web.Response | None:
        return web.Response(status=403) if request.path.endswith(".sig") else None

    registry.hook = fails
    with pytest.raises(AgentError, match="403"):
        await node.pull(name(registry))


class Keyless:
    """A signature with a certificate of Fulcio and an entry of Rekor."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.fulcio = signing.Authority()
        self.rekor, self.key = signing.new_key(), signing.new_key()
        self.message = signing.payload(image_digest(registry), name(registry, "a/b"))

    @property
    def requirement(self) -> dict[str, Any]:
        return {
            "type": "sigstoreSigned",
            "fulcio": {
                "caData": base64.b64encode(self.fulcio.pem).decode(),
                "oidcIssuer": signing.ISSUER,
                "subjectEmail": signing.MAIL,
            },
            "rekorPublicKeyData": base64.b64encode(signing.pem(self.rekor)).decode(),
            "signedIdentity": REPOSITORY,
        }

    def attach(self, certificate: bytes, bundle: str | None = None, **entry: Any) -> None:
        text = signing.signed(self.key, self.message)
        if bundle is None:
            bundle = signing.log_entry(self.rekor, self.message, text, certificate, **entry)
        notes = {
            "dev.cosignproject.cosign/signature": text,
            "dev.sigstore.cosign/certificate": certificate.decode(),
            "dev.sigstore.cosign/bundle": bundle,
        }
        attach(self.registry, (self.message, notes))


async def test_a_certificate_of_fulcio_counts(
    node: Node, registry: Registry, tmp_path: Path
) -> None:
    keyless = Keyless(registry)
    written(tmp_path / "policy.json", keyless.requirement)
    keyless.attach(keyless.fulcio.issued(keyless.key))
    await node.pull(name(registry))


async def test_certificates_that_do_not_count(
    node: Node, registry: Registry, tmp_path: Path
) -> None:
    keyless = Keyless(registry)
    written(tmp_path / "policy.json", keyless.requirement)
    good = keyless.fulcio.issued(keyless.key)
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"x")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"certificate": signing.Authority().issued(keyless.key)}, "no authority of the policy"),
        (
            {"certificate": keyless.fulcio.issued(keyless.key, mail="eve@example.com")},
            "its certificate is for 'eve@example.com'",
        ),
        (
            {"certificate": keyless.fulcio.issued(keyless.key, issuer="https://evil.example")},
            "its certificate is for a user of 'https://evil.example'",
        ),
        (
            {
                "certificate": keyless.fulcio.issued(
                    keyless.key, usage=ExtendedKeyUsageOID.SERVER_AUTH
                )
            },
            "its certificate is not for signing code",
        ),
        (
            {"certificate": keyless.fulcio.issued(keyless.key, extra=unknown)},
            "unknown critical extension 1.2.3.4",
        ),
        ({"certificate": good, "at": signing.SIGNED_AT + 3600}, "was not valid when it signed"),
        ({"certificate": good, "bundle": ""}, "it has no entry of Rekor"),
        ({"certificate": good, "bundle": "{}"}, "its entry of Rekor cannot be read"),
        (
            {"certificate": keyless.fulcio.issued(signing.new_key())},
            "no key of the policy made it",
        ),
        ({"certificate": b"no certificate"}, "its certificate cannot be used"),
    ]
    for options, why in cases:
        keyless.attach(**options)
        assert why in await rejected(node, name(registry))


async def test_entries_of_rekor_that_do_not_count(
    node: Node, registry: Registry, tmp_path: Path
) -> None:
    keyless = Keyless(registry)
    written(tmp_path / "policy.json", keyless.requirement)
    good = keyless.fulcio.issued(keyless.key)
    text = signing.signed(keyless.key, keyless.message)
    other = keyless.fulcio.issued(keyless.key)
    for bundle, why in (
        (signing.log_entry(signing.new_key(), keyless.message, text, good), "no key of Rekor"),
        (signing.log_entry(keyless.rekor, b"else", text, good), "is about another signature"),
        (
            signing.log_entry(keyless.rekor, keyless.message, "AAAA", good),
            "is about another signature",
        ),
    ):
        keyless.attach(good, bundle)
        assert why in await rejected(node, name(registry))
    message, signed = keyless.message, signing.signed(keyless.key, keyless.message)
    notes = {
        "dev.cosignproject.cosign/signature": signed,
        "dev.sigstore.cosign/certificate": good.decode(),
        "dev.sigstore.cosign/bundle": signing.log_entry(keyless.rekor, message, signed, other),
    }
    attach(registry, (message, notes))
    assert "its entry of Rekor names another certificate" in await rejected(node, name(registry))


async def test_a_key_with_an_entry_of_rekor(node: Node, registry: Registry, tmp_path: Path) -> None:
    key, log = signing.new_key(), signing.new_key()
    data = base64.b64encode(signing.pem(log)).decode()
    written(tmp_path / "policy.json", by_key(key, rekorPublicKeyData=data))
    message, notes = signature(registry, key)
    attach(registry, (message, notes))
    assert "it has no entry of Rekor" in await rejected(node, name(registry))
    text = notes["dev.cosignproject.cosign/signature"]
    notes["dev.sigstore.cosign/bundle"] = signing.log_entry(log, message, text, signing.pem(key))
    attach(registry, (message, notes))
    await node.pull(name(registry))


def test_the_kubelet_learns_that_a_signature_was_refused() -> None:
    status = status_of(SignatureRejectedError("a: rejected"), "PullImage", "x")
    assert (status.code.name, status.text) == ("UNKNOWN", "SignatureValidationFailed: a: rejected")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}", "missing required field `default`"),
        ('{"default": [{"type": "accept"}]}', "Invalid value 'accept'"),
        ('{"default": [{"type": "reject", "x": 1}]}', "unknown field `x`"),
        ('{"default": [{"type": "reject"}], "more": 1}', "unknown field `more`"),
        ('{"default": [{"type": "sigstoreSigned"}]}', "exactly one of keyPath"),
        (
            '{"default": [{"type": "sigstoreSigned", "keyPath": "/a", "keyData": "YQ=="}]}',
            "exactly one of keyPath",
        ),
        (
            json.dumps(
                {
                    "default": [
                        {
                            "type": "sigstoreSigned",
                            "fulcio": {"caPath": "/a", "oidcIssuer": "i", "subjectEmail": "m"},
                        }
                    ]
                }
            ),
            "fulcio needs a key of Rekor",
        ),
    ],
)
def test_a_malformed_policy_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_policy(text.encode())


@pytest.mark.parametrize(
    "requirement",
    [
        {"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/a"},
        {"type": "sigstoreSigned", "pki": {"caRootsPath": "/a"}},
    ],
)
def test_what_is_not_supported_is_refused(requirement: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="not supported; use"):
        parse_policy(json.dumps({"default": [requirement]}).encode())


DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("identity", "wanted", "signed", "expected"),
    [
        (MatchExact(), "reg.io/a:1", "reg.io/a:1", True),
        (MatchExact(), "reg.io/a:1", "reg.io/a:2", False),
        (MatchExact(), "reg.io/a:1", "reg.io/a", False),
        (MatchExact(), f"reg.io/a@{DIGEST}", "reg.io/a:1", False),
        (MatchRepoDigestOrExact(), "reg.io/a:1", "reg.io/a:1", True),
        (MatchRepoDigestOrExact(), "reg.io/a:1", "reg.io/a", False),
        (MatchRepoDigestOrExact(), f"reg.io/a@{DIGEST}", "reg.io/a:9", True),
        (MatchRepoDigestOrExact(), f"reg.io/a@{DIGEST}", "reg.io/b:9", False),
        (MatchRepository(), "reg.io/a:1", "reg.io/a", True),
        (MatchRepository(), "reg.io/a:1", "reg.io/ab", False),
        (MatchRepository(), "docker.io/library/a:1", "a", True),
        (MatchRepository(), "reg.io/a:1", "NOT a name", False),
        (ExactReference(docker_reference="x.io/b:3"), "reg.io/a:1", "x.io/b:3", True),
        (ExactReference(docker_reference="x.io/b:3"), "reg.io/a:1", "reg.io/a:1", False),
        (ExactRepository(docker_repository="x.io/b"), "reg.io/a:1", "x.io/b:7", True),
        (ExactRepository(docker_repository="x.io/b"), "reg.io/a:1", "reg.io/a:1", False),
        (RemapIdentity(prefix="m.io/v", signed_prefix="reg.io"), "m.io/v/a:1", "reg.io/a:1", True),
        (RemapIdentity(prefix="m.io/v", signed_prefix="reg.io"), "m.io/va:1", "reg.io/a:1", False),
        (RemapIdentity(prefix="m.io/v", signed_prefix="reg.io"), "o.io/a:1", "o.io/a:1", True),
    ],
)
def test_names_in_signatures(identity: Identity, wanted: str, signed: str, expected: bool) -> None:
    assert accepts(identity, parse_reference(wanted), signed) is expected


def test_scopes_from_the_image_to_all_registries() -> None:
    policy = {
        "default": [{"type": "reject"}],
        "transports": {
            "docker": {
                scope: [{"type": "insecureAcceptAnything"}]
                for scope in ("reg.example.com:5000/a/b", "*.example.com", "*.com", "docker.io")
            },
            "docker-daemon": {"": [{"type": "reject"}]},
        },
    }
    parsed = parse_policy(json.dumps(policy).encode())
    found = {
        text: parsed.scope(parse_reference(text))[0]
        for text in (
            "reg.example.com:5000/a/b:1",
            "reg.example.com:5000/a/bc:1",
            "x.org.com/a:1",
            "busybox:1",
            "quay.io/a:1",
        )
    }
    assert found == {
        "reg.example.com:5000/a/b:1": 'docker "reg.example.com:5000/a/b"',
        "reg.example.com:5000/a/bc:1": 'docker "*.example.com"',
        "x.org.com/a:1": 'docker "*.com"',
        "busybox:1": 'docker "docker.io"',
        "quay.io/a:1": "default",
    }
