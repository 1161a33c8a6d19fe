# SPDX-License-Identifier: Apache-2.0
"""Sigstore bundles as cosign 3 makes them: statements in envelopes, and referrers."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from tests.support import signing

Json = dict[str, Any]
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
SIGN = "https://sigstore.dev/cosign/sign/v1"
STATEMENT = "application/vnd.in-toto+json"


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def statement(digest: str, kind: str = SIGN) -> bytes:
    algorithm, _, value = digest.partition(":")
    return json.dumps(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"digest": {algorithm: value}}],
            "predicateType": kind,
            "predicate": {},
        }
    ).encode()


def envelope(key: ec.EllipticCurvePrivateKey, payload: bytes, kind: str = STATEMENT) -> Json:
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)
    signature = key.sign(signed, ec.ECDSA(SHA256()))
    return {
        "payload": encoded(payload),
        "payloadType": kind,
        "signatures": [{"sig": encoded(signature)}],
    }


def bundle(material: Json | None = None, **content: Json) -> bytes:
    """A bundle of `dsseEnvelope` or `messageSignature`."""
    return json.dumps(
        {
            "mediaType": BUNDLE,
            "verificationMaterial": {"publicKey": {"hint": "x"}, **(material or {})},
            **content,
        }
    ).encode()


def message(key: ec.EllipticCurvePrivateKey, manifest: bytes) -> Json:
    """A signature of the manifest itself."""
    return {
        "messageDigest": {
            "algorithm": "SHA2_256",
            "digest": encoded(hashlib.sha256(manifest).digest()),
        },
        "signature": encoded(key.sign(manifest, ec.ECDSA(SHA256()))),
    }


def log_entry(log: ec.EllipticCurvePrivateKey, signed: Json, by: bytes, **change: Any) -> Json:
    """The entry of a Rekor for an envelope that the key or certificate `by` (PEM) verifies."""
    payload = base64.b64decode(signed["payload"])
    body = json.dumps(
        {
            "apiVersion": "0.0.1",
            "kind": "dsse",
            "spec": {
                "payloadHash": {
                    "algorithm": "sha256",
                    "value": hashlib.sha256(change.get("payload", payload)).hexdigest(),
                },
                "signatures": [
                    {"signature": signed["signatures"][0]["sig"], "verifier": encoded(by)}
                ],
            },
        }
    ).encode()
    entry = {
        "body": encoded(body),
        "integratedTime": signing.SIGNED_AT,
        "logIndex": 7,
        "logID": "ab" * 32,
    }
    canonical = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()
    return {
        "logIndex": "7",
        "logId": {"keyId": encoded(b"\xab" * 32)},
        "kindVersion": {"kind": "dsse", "version": "0.0.1"},
        "integratedTime": str(signing.SIGNED_AT),
        "inclusionPromise": {"signedEntryTimestamp": signing.signed(log, canonical)},
        "canonicalizedBody": encoded(body),
    }


def der(pem: bytes) -> str:
    """A certificate as bundles have it."""
    return encoded(x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER))


def referrer(content: bytes) -> tuple[bytes, list[bytes]]:
    """The manifest that refers to an image with a bundle, and its blobs."""

    def entry(blob: bytes, kind: str) -> Json:
        digest = "sha256:" + hashlib.sha256(blob).hexdigest()
        return {"mediaType": kind, "digest": digest, "size": len(blob)}

    manifest = {
        "schemaVersion": 2,
        "mediaType": signing.OCI_MANIFEST,
        "artifactType": BUNDLE,
        "config": entry(b"{}", "application/vnd.oci.empty.v1+json"),
        "layers": [entry(content, BUNDLE)],
    }
    return json.dumps(manifest).encode(), [b"{}", content]
