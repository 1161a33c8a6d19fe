# SPDX-License-Identifier: Apache-2.0
"""policy.json (man 5 containers-policy.json): requirements, and the scope of an image.

Read strictly, as its own readers do: a key that is not known could be one that forbids something.
Not supported, and refused with a text: signedBy (GPG) and the key `pki`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, TypeAlias

import msgspec

from criagent.base.errors import UnsupportedError
from criagent.image.documents.reference import Reference
from criagent.image.policy.identity import Identity, MatchRepoDigestOrExact

_REGISTRIES = "docker"  # the transport of pulls from registries


class _Requirement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """One kind; `type` names it."""


class Accept(_Requirement, frozen=True, tag="insecureAcceptAnything"):
    """Any image."""


class Reject(_Requirement, frozen=True, tag="reject"):
    """No image."""


class SignedBy(msgspec.Struct, frozen=True, tag_field="type", tag="signedBy"):
    """GPG signatures."""


class Fulcio(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A certificate authority that certifies keys of a few minutes for an address of mail."""

    oidc_issuer: str
    subject_email: str
    ca_path: str = ""
    ca_data: bytes = b""


class SigstoreSigned(_Requirement, frozen=True, tag="sigstoreSigned", rename="camel"):
    """A signature by one of the keys, or by a certificate of Fulcio, with a name that counts."""

    key_path: str = ""
    key_paths: tuple[str, ...] = ()
    key_data: bytes = b""
    key_datas: tuple[bytes, ...] = ()
    fulcio: Fulcio | None = None
    pki: dict[str, Any] | None = None
    rekor_public_key_path: str = ""
    rekor_public_key_paths: tuple[str, ...] = ()
    rekor_public_key_data: bytes = b""
    rekor_public_key_datas: tuple[bytes, ...] = ()
    signed_identity: Identity = MatchRepoDigestOrExact()

    @property
    def wants_rekor(self) -> bool:
        """Whether an entry of the transparency log is needed."""
        return any(
            (
                self.rekor_public_key_path,
                self.rekor_public_key_paths,
                self.rekor_public_key_data,
                self.rekor_public_key_datas,
            )
        )


Requirement: TypeAlias = Accept | Reject | SignedBy | SigstoreSigned
Requirements: TypeAlias = Annotated[tuple[Requirement, ...], msgspec.Meta(min_length=1)]


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The document. All requirements of a scope have to be met."""

    default: Requirements
    transports: dict[str, dict[str, Requirements]] = {}

    def scope(self, reference: Reference) -> tuple[str, Sequence[Requirement]]:
        """The name of the closest scope of an image in a registry, and its requirements."""
        scopes = self.transports.get(_REGISTRIES, {})
        for name in _scopes(reference):
            if name in scopes:
                return f'docker "{name}"', scopes[name]
        return "default", self.default


def parse_policy(content: bytes) -> Policy:
    """The policy. Raises ValueError for one that is malformed, UnsupportedError for one that wants
    what is not supported."""
    policy = msgspec.json.decode(content, type=Policy)
    scopes = [policy.default]
    for by_name in policy.transports.values():
        scopes += by_name.values()
    for requirements in scopes:
        for requirement in requirements:
            _check(requirement)
    return policy


def _check(requirement: Requirement) -> None:
    if isinstance(requirement, SignedBy):
        raise UnsupportedError("signedBy needs GPG, which is not supported; use sigstoreSigned")
    if not isinstance(requirement, SigstoreSigned):
        return
    if requirement.pki is not None:
        raise UnsupportedError("sigstoreSigned.pki is not supported; use keys or fulcio")
    sources = (
        requirement.key_path,
        requirement.key_paths,
        requirement.key_data,
        requirement.key_datas,
        requirement.fulcio,
    )
    if sum(map(bool, sources)) != 1:
        raise ValueError(
            "sigstoreSigned needs exactly one of keyPath, keyPaths, keyData, keyDatas and fulcio"
        )
    fulcio = requirement.fulcio
    if fulcio is None:
        return
    if bool(fulcio.ca_path) == bool(fulcio.ca_data):
        raise ValueError("fulcio needs exactly one of caPath and caData")
    if not (fulcio.oidc_issuer and fulcio.subject_email):
        raise ValueError("fulcio needs oidcIssuer and subjectEmail")
    if not requirement.wants_rekor:
        raise ValueError("fulcio needs a key of Rekor, which says when the certificate was used")


def _scopes(reference: Reference) -> Iterator[str]:
    """From the image to its registry, to wildcards of domains above it, to all registries."""
    if reference.digest is not None:
        yield f"{reference.name}@{reference.digest}"
    elif reference.tagged is not None:
        yield reference.tagged
    name = reference.name
    while True:
        yield name
        name, slash, _ = name.rpartition("/")
        if not slash:
            break
    domain = reference.registry.partition(":")[0]
    while "." in domain:
        domain = domain.partition(".")[2]
        yield f"*.{domain}"
    yield ""
