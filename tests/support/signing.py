# SPDX-License-Identifier: Apache-2.0
"""Signatures as cosign makes them: keys, payloads, certificates of a Fulcio, entries of a Rekor."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

PAYLOAD_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ISSUER = "https://accounts.example.com"
MAIL = "dev@example.com"
SIGNED_AT = 1_700_000_000
_ISSUER_OID = ObjectIdentifier("1.3.6.1.4.1.57264.1.1")


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public key's file."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def policy(host: str, key: Path) -> str:
    """A policy.json that admits from `host` only what this public key has signed."""
    requirement = {
        "type": "sigstoreSigned",
        "keyPath": str(key),
        "signedIdentity": {"type": "matchRepository"},
    }
    transports = {"docker": {host: [requirement]}}
    return json.dumps({"default": [{"type": "insecureAcceptAnything"}], "transports": transports})


def payload(digest: str, name: str, **optional: str) -> bytes:
    """What cosign signs; `name` is without a tag."""
    return json.dumps(
        {
            "critical": {
                "identity": {"docker-reference": name},
                "image": {"docker-manifest-digest": digest},
                "type": "cosign container image signature",
            },
            "optional": optional or None,
        }
    ).encode()


def signed(key: ec.EllipticCurvePrivateKey, message: bytes) -> str:
    return base64.b64encode(key.sign(message, ec.ECDSA(SHA256()))).decode()


@dataclass
class Authority:
    """A Fulcio: a root and certificates that it issues."""

    key: ec.EllipticCurvePrivateKey = field(default_factory=new_key)

    def __post_init__(self) -> None:
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fulcio")])
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        self.root = (
            self._begun(self.name, self.key, days=3650)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(self.key, SHA256())
        )

    def _begun(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, days: float
    ) -> x509.CertificateBuilder:
        start = dt.datetime.fromtimestamp(SIGNED_AT, dt.UTC) - dt.timedelta(minutes=5)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + dt.timedelta(days=days))
        )

    @property
    def pem(self) -> bytes:
        return self.root.public_bytes(Encoding.PEM)

    def issued(
        self,
        key: ec.EllipticCurvePrivateKey,
        *,
        mail: str = MAIL,
        issuer: str = ISSUER,
        usage: ObjectIdentifier = ExtendedKeyUsageOID.CODE_SIGNING,
        extra: x509.ExtensionType | None = None,
    ) -> bytes:
        """A certificate for ten minutes around SIGNED_AT."""
        builder = (
            self._begun(x509.Name([]), key, days=10 / 1440)
            .add_extension(x509.SubjectAlternativeName([x509.RFC822Name(mail)]), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.UnrecognizedExtension(_ISSUER_OID, issuer.encode()), critical=False)
        )
        if extra is not None:
            builder = builder.add_extension(extra, critical=True)
        return builder.sign(self.key, SHA256()).public_bytes(Encoding.PEM)


def log_entry(
    log: ec.EllipticCurvePrivateKey,
    message: bytes,
    signature: str,
    by: bytes,
    *,
    at: int = SIGNED_AT,
) -> str:
    """Rekor's bundle for a signature of `message` by the key or certificate `by` (PEM)."""
    body = {
        "apiVersion": "0.0.1",
        "kind": "hashedrekord",
        "spec": {
            "data": {"hash": {"algorithm": "sha256", "value": hashlib.sha256(message).hexdigest()}},
            "signature": {
                "content": signature,
                "publicKey": {"content": base64.b64encode(by).decode()},
            },
        },
    }
    entry = {
        "body": base64.b64encode(json.dumps(body).encode()).decode(),
        "integratedTime": at,
        "logIndex": 7,
        "logID": "ab" * 32,
    }
    canonical = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps({"SignedEntryTimestamp": signed(log, canonical), "Payload": entry})


def attachment(*signatures: tuple[bytes, dict[str, str]]) -> tuple[bytes, list[bytes]]:
    """The manifest that cosign tags sha256-DIGEST.sig, and its blobs."""

    def entry(content: bytes, kind: str, **fields: Any) -> dict[str, Any]:
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        return {"mediaType": kind, "digest": digest, "size": len(content), **fields}

    config = b'{"architecture":"","os":"","rootfs":{"type":"layers","diff_ids":[]}}'
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": entry(config, "application/vnd.oci.image.config.v1+json"),
        "layers": [
            entry(message, PAYLOAD_TYPE, annotations=notes) for message, notes in signatures
        ],
    }
    return json.dumps(manifest).encode(), [config, *(message for message, _ in signatures)]
