# SPDX-License-Identifier: Apache-2.0
"""A sigstore bundle, as cosign 3 attaches it to a manifest (cosign's specs/BUNDLE_SPEC.md).

It has the signature, what certifies its key, and the entry of the log, in one document of JSON
(sigstore's protobuf-specs, sigstore_bundle.proto). What is signed is a statement of in-toto about
the digest in an envelope of DSSE, or the digest itself. Neither names the image. An entry counts by
its SignedEntryTimestamp, which the log's second version does not have.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from typing import Annotated

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_der_x509_certificate

from criagent.image.policy import rekor
from criagent.image.policy.signature import PublicKey, RejectedError, Signature, verified
from criagent.image.policy.sigstore import Trust, trusted_keys

_STATEMENTS = "application/vnd.in-toto+json"
_SIGNED = "https://sigstore.dev/cosign/sign/v1"  # an attestation has another type


class _Key(msgspec.Struct):
    hint: str = ""


class _Der(msgspec.Struct, rename="camel"):
    raw_bytes: bytes


class _Chain(msgspec.Struct):
    certificates: Annotated[list[_Der], msgspec.Meta(min_length=1, max_length=10)]


class _LogId(msgspec.Struct, rename="camel"):
    key_id: bytes


class _Kind(msgspec.Struct, frozen=True):
    kind: str = ""
    version: str = ""


class _Promise(msgspec.Struct, rename="camel"):
    signed_entry_timestamp: bytes


class _LogEntry(msgspec.Struct, rename="camel"):
    log_id: _LogId
    canonicalized_body: bytes
    log_index: int | str = 0  # 64 bits are a string in the JSON of protobuf
    integrated_time: int | str = 0
    kind_version: _Kind = _Kind()
    inclusion_promise: _Promise | None = None


class _Material(msgspec.Struct, rename="camel"):
    public_key: _Key | None = None
    certificate: _Der | None = None
    x509_certificate_chain: _Chain | None = msgspec.field(default=None, name="x509CertificateChain")
    tlog_entries: Annotated[list[_LogEntry], msgspec.Meta(max_length=16)] = []


class _Sig(msgspec.Struct):
    sig: bytes


class _Envelope(msgspec.Struct, rename="camel"):
    payload: bytes
    payload_type: str
    signatures: Annotated[list[_Sig], msgspec.Meta(min_length=1, max_length=1)]


class _Digest(msgspec.Struct):
    algorithm: str
    digest: bytes


class _Message(msgspec.Struct, rename="camel"):
    message_digest: _Digest
    signature: bytes


class _Bundle(msgspec.Struct, rename="camel"):
    media_type: str
    verification_material: _Material
    dsse_envelope: _Envelope | None = None
    message_signature: _Message | None = None


class _Subject(msgspec.Struct):
    digest: dict[str, str]


class _Statement(msgspec.Struct, rename="camel"):
    predicate_type: str
    subject: list[_Subject]


def check(trust: Trust, content: bytes, digests: Sequence[str]) -> None:
    """Raises RejectedError unless the bundle is a signature of `trust` for one of the digests."""
    try:
        bundle = msgspec.json.decode(content, type=_Bundle)
    except (msgspec.DecodeError, ValueError) as error:
        raise RejectedError(f"its bundle cannot be read: {error}") from None
    if bundle.dsse_envelope is not None:
        _check_envelope(trust, bundle.verification_material, bundle.dsse_envelope, digests)
    elif bundle.message_signature is not None:
        _check_message(trust, bundle.verification_material, bundle.message_signature, digests)
    else:
        raise RejectedError("its bundle has no signature")


def _check_envelope(
    trust: Trust, material: _Material, envelope: _Envelope, digests: Sequence[str]
) -> None:
    if envelope.payload_type != _STATEMENTS:
        raise RejectedError(f"its envelope has a {envelope.payload_type[:80]!r}")
    kind, signature = envelope.payload_type.encode(), envelope.signatures[0].sig
    entry = _entry(trust, material, envelope=True)
    if entry is not None:
        rekor.check_entry(entry, envelope.payload, signature)
    keys = trusted_keys(trust, _certified(material), entry)
    # DSSE's pre-authentication encoding (its protocol.md)
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(envelope.payload), envelope.payload)
    if not any(verified(key, signature, signed) for key in keys):
        raise RejectedError("no key of the policy made it")
    try:
        statement = msgspec.json.decode(envelope.payload, type=_Statement)
    except msgspec.DecodeError as error:
        raise RejectedError(f"its statement cannot be read: {error}") from None
    if statement.predicate_type != _SIGNED:
        raise RejectedError(f"its statement is a {statement.predicate_type[:80]!r}, no signature")
    named = {f"{kind}:{value}" for one in statement.subject for kind, value in one.digest.items()}
    if not named & set(digests):
        raise RejectedError(f"it is for {', '.join(sorted(named))[:160]}")


def _check_message(
    trust: Trust, material: _Material, message: _Message, digests: Sequence[str]
) -> None:
    digest = message.message_digest
    if digest.algorithm != "SHA2_256" or f"sha256:{digest.digest.hex()}" not in digests:
        raise RejectedError(f"it is for {digest.algorithm[:20]} {digest.digest.hex()[:64]}")
    entry = _entry(trust, material, envelope=False)
    if entry is not None and (
        (entry.hash.algorithm, entry.hash.value) != ("sha256", digest.digest.hex())
        or entry.signature != message.signature
    ):
        raise RejectedError("its entry of Rekor is about another signature")
    keys = trusted_keys(trust, _certified(material), entry)
    if not any(_verified_digest(key, message.signature, digest.digest) for key in keys):
        raise RejectedError("no key of the policy made it")


def _verified_digest(key: PublicKey, signature: bytes, digest: bytes) -> bool:
    """Whether `key` signed what has the SHA-256 `digest`; Ed25519 needs the content itself."""
    try:
        match key:
            case ec.EllipticCurvePublicKey():
                key.verify(signature, digest, ec.ECDSA(Prehashed(SHA256())))
                return True
            case rsa.RSAPublicKey():
                key.verify(signature, digest, padding.PKCS1v15(), Prehashed(SHA256()))
                return True
    except (InvalidSignature, ValueError):
        return False
    return False


def _entry(trust: Trust, material: _Material, *, envelope: bool) -> rekor.Entry | None:
    """The entry of the log, if the policy wants one."""
    if not trust.rekor_keys:
        return None
    if not material.tlog_entries:
        raise RejectedError("it has no entry of Rekor")
    found = material.tlog_entries[0]
    if found.inclusion_promise is None and found.kind_version.version not in {"", "0.0.1"}:
        kind = f"{found.kind_version.kind[:40]} {found.kind_version.version[:20]}"
        raise RejectedError(
            f"its entry is one of Rekor 2 ({kind}), which gives no time of its own and cannot be "
            "verified; sign with --use-signing-config=false, which makes cosign write to Rekor 1"
        )
    if found.inclusion_promise is None:
        raise RejectedError("its entry of Rekor has no SignedEntryTimestamp")
    try:
        payload = {
            "body": b64encode(found.canonicalized_body).decode(),
            "integratedTime": int(found.integrated_time),
            "logIndex": int(found.log_index),
            "logID": found.log_id.key_id.hex(),
        }
    except ValueError:
        raise RejectedError("its entry of Rekor has an invalid number") from None
    promise = b64encode(found.inclusion_promise.signed_entry_timestamp).decode()
    document = json.dumps({"SignedEntryTimestamp": promise, "Payload": payload})
    return rekor.entry(document, trust.rekor_keys, envelope=envelope)


def _certified(material: _Material) -> Signature:
    """The certificates, in the form of cosign's annotations."""
    ders = [material.certificate] if material.certificate is not None else []
    if material.x509_certificate_chain is not None:
        ders = material.x509_certificate_chain.certificates
    try:
        pems = [
            load_der_x509_certificate(der.raw_bytes).public_bytes(Encoding.PEM).decode()
            for der in ders
        ]
    except ValueError as error:
        raise RejectedError(f"its certificate cannot be read: {error}") from None
    return Signature(
        payload=b"", signature="", certificate="".join(pems[:1]), chain="".join(pems[1:])
    )
