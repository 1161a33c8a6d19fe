# SPDX-License-Identifier: Apache-2.0
"""A signature of cosign: its payload, the key that made it, and the log entry about it.

The payload is "simple signing" of containers/image (docs/containers-signature.5.md there); cosign
attaches it with its signature to a manifest that is tagged sha256-DIGEST.sig.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from criagent.image.documents.reference import Reference
from criagent.image.policy import fulcio, rekor
from criagent.image.policy.document import SigstoreSigned
from criagent.image.policy.identity import accepts
from criagent.image.policy.signature import (
    PublicKey,
    RejectedError,
    Signature,
    public_key,
    verified,
)

_TYPE = "cosign container image signature"


class _Image(msgspec.Struct, forbid_unknown_fields=True, rename="kebab"):
    docker_manifest_digest: str


class _Name(msgspec.Struct, forbid_unknown_fields=True, rename="kebab"):
    docker_reference: str


class _Critical(msgspec.Struct, forbid_unknown_fields=True):
    type: str
    image: _Image
    identity: _Name


class _Payload(msgspec.Struct, forbid_unknown_fields=True):
    critical: _Critical
    optional: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Trust:
    """The keys of a requirement, read. Raises OSError and ValueError when they cannot be."""

    requirement: SigstoreSigned
    keys: tuple[PublicKey, ...]
    rekor_keys: tuple[PublicKey, ...]
    roots: bytes = b""  # PEM of Fulcio's authorities

    @classmethod
    def of(cls, requirement: SigstoreSigned) -> Trust:
        """Reads the files that the requirement names."""
        keys = _contents(
            (requirement.key_path, *requirement.key_paths),
            (requirement.key_data, *requirement.key_datas),
        )
        logs = _contents(
            (requirement.rekor_public_key_path, *requirement.rekor_public_key_paths),
            (requirement.rekor_public_key_data, *requirement.rekor_public_key_datas),
        )
        authority = requirement.fulcio
        roots = b""
        if authority is not None:
            roots = authority.ca_data or Path(authority.ca_path).read_bytes()
        return cls(requirement, tuple(map(public_key, keys)), tuple(map(public_key, logs)), roots)


def check(trust: Trust, found: Signature, wanted: Reference, digests: Sequence[str]) -> None:
    """Raises RejectedError unless the signature is one of `trust` for the image.

    `digests` are those of its index and manifest: either may be what was signed.
    """
    signature = _signature(found)
    entry = None
    if trust.rekor_keys:
        entry = rekor.entry(found.bundle, trust.rekor_keys)
        rekor.check_entry(entry, found.payload, signature)
    keys = trusted_keys(trust, found, entry)
    if not any(verified(key, signature, found.payload) for key in keys):
        raise RejectedError("no key of the policy made it")
    _check_payload(trust.requirement, found.payload, wanted, digests)


def trusted_keys(trust: Trust, found: Signature, entry: rekor.Entry | None) -> Sequence[PublicKey]:
    """The keys that may have made a signature with this certificate and entry of the log.

    Raises RejectedError when there is none, or the entry names another one.
    """
    if trust.requirement.fulcio is None:
        if entry is not None:
            rekor.check_key(entry, trust.keys)
        return trust.keys
    if entry is None:
        raise RejectedError("it has no entry of Rekor")
    certified = fulcio.certified_key(
        trust.requirement.fulcio, trust.roots, found, entry.integrated_time
    )
    rekor.check_certificate(entry, found.certificate)
    return (certified,)


def _signature(found: Signature) -> bytes:
    try:
        return b64decode(found.signature, validate=True)
    except (binascii.Error, ValueError):
        raise RejectedError("its signature is not base64") from None


def _check_payload(
    requirement: SigstoreSigned, payload: bytes, wanted: Reference, digests: Sequence[str]
) -> None:
    """The payload is read only after its signature was verified."""
    try:
        critical = msgspec.json.decode(payload, type=_Payload).critical
    except msgspec.DecodeError as error:
        raise RejectedError(f"its payload cannot be read: {error}") from None
    if critical.type != _TYPE:
        raise RejectedError(f"its payload is a {critical.type[:80]!r}")
    if critical.image.docker_manifest_digest not in digests:
        raise RejectedError(f"it is for {critical.image.docker_manifest_digest[:80]}")
    name = critical.identity.docker_reference
    if not accepts(requirement.signed_identity, wanted, name):
        kind = type(requirement.signed_identity).__struct_config__.tag
        raise RejectedError(f"it names {name[:200]!r}, which signedIdentity {kind} does not accept")


def _contents(paths: Sequence[str], datas: Sequence[bytes]) -> list[bytes]:
    return [Path(path).read_bytes() for path in paths if path] + [data for data in datas if data]
