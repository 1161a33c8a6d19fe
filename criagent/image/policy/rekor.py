# SPDX-License-Identifier: Apache-2.0
"""An entry of the transparency log Rekor, given with the signature and checked offline.

The log signs the entry with the time at which it took it in (the SignedEntryTimestamp of cosign's
bundle annotation), over the entry's canonical JSON (RFC 8785).
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from criagent.image.policy.signature import PublicKey, RejectedError, verified

_SIGNATURES, _ENVELOPES = ("hashedrekord", "0.0.1"), ("dsse", "0.0.1")


class _Payload(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    body: str
    integrated_time: int
    log_index: int
    log_id: str = msgspec.field(name="logID")


class _Bundle(msgspec.Struct, rename="pascal"):
    signed_entry_timestamp: bytes
    payload: _Payload


class _Hash(msgspec.Struct):
    algorithm: str
    value: str


class _Data(msgspec.Struct):
    hash: _Hash


class _Content(msgspec.Struct):
    content: bytes


class _Signed(msgspec.Struct, rename="camel"):
    content: bytes
    public_key: _Content


class _HashedRekord(msgspec.Struct):
    data: _Data
    signature: _Signed


class _EnvelopeSignature(msgspec.Struct):
    signature: bytes
    verifier: bytes


class _Dsse(msgspec.Struct, rename="camel"):
    payload_hash: _Hash
    signatures: Annotated[list[_EnvelopeSignature], msgspec.Meta(min_length=1, max_length=1)]


class _Body(msgspec.Struct, rename="camel"):
    kind: str
    api_version: str
    spec: msgspec.Raw


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry that the log has signed: a signature of content with this hash.

    `verifier` is the PEM of the key or certificate that it names.
    """

    integrated_time: int  # seconds of Unix time
    hash: _Hash
    signature: bytes
    verifier: bytes


def entry(bundle: str | bytes, keys: Sequence[PublicKey], *, envelope: bool = False) -> Entry:
    """The entry of cosign's annotation, about an `envelope` (DSSE) or a plain signature.

    Raises RejectedError unless a key of the log signed it.
    """
    if not bundle:
        raise RejectedError("it has no entry of Rekor")
    try:
        found = msgspec.json.decode(bundle, type=_Bundle)
        body = msgspec.json.decode(b64decode(found.payload.body, validate=True), type=_Body)
    except (msgspec.DecodeError, ValueError) as error:
        raise RejectedError(f"its entry of Rekor cannot be read: {error}") from None
    canonical = json.dumps(
        msgspec.to_builtins(found.payload), sort_keys=True, separators=(",", ":")
    ).encode()
    if not any(verified(key, found.signed_entry_timestamp, canonical) for key in keys):
        raise RejectedError("no key of Rekor in the policy signed its entry")
    if (body.kind, body.api_version) != (_ENVELOPES if envelope else _SIGNATURES):
        raise RejectedError(f"its entry of Rekor is a {body.kind[:40]} {body.api_version[:20]}")
    return _entry(found.payload.integrated_time, body.spec, envelope=envelope)


def _entry(seconds: int, spec: bytes, *, envelope: bool) -> Entry:
    try:
        if envelope:
            dsse = msgspec.json.decode(spec, type=_Dsse)
            signed = dsse.signatures[0]
            return Entry(seconds, dsse.payload_hash, signed.signature, signed.verifier)
        plain = msgspec.json.decode(spec, type=_HashedRekord)
    except (msgspec.DecodeError, ValueError) as error:
        raise RejectedError(f"its entry of Rekor cannot be read: {error}") from None
    signature = plain.signature
    return Entry(seconds, plain.data.hash, signature.content, signature.public_key.content)


def check_entry(found: Entry, payload: bytes, signature: bytes) -> None:
    """Raises RejectedError for an entry about another signature."""
    digest = found.hash
    same = digest.algorithm == "sha256" and digest.value == hashlib.sha256(payload).hexdigest()
    if not same or found.signature != signature:
        raise RejectedError("its entry of Rekor is about another signature")


def check_key(found: Entry, keys: Sequence[PublicKey]) -> None:
    """Raises RejectedError unless the entry names one of the keys."""
    try:
        logged = load_pem_public_key(found.verifier)
    except ValueError as error:
        raise RejectedError(f"its entry of Rekor has no key: {error}") from None
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if logged.public_bytes(*form) not in [key.public_bytes(*form) for key in keys]:
        raise RejectedError("its entry of Rekor names a key that the policy does not have")


def check_certificate(found: Entry, certificate: str) -> None:
    """Raises RejectedError unless the entry names the certificate."""
    try:
        logged = x509.load_pem_x509_certificate(found.verifier)
    except ValueError as error:
        raise RejectedError(f"its entry of Rekor has no certificate: {error}") from None
    if logged != x509.load_pem_x509_certificate(certificate.encode()):
        raise RejectedError("its entry of Rekor names another certificate")
