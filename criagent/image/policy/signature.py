# SPDX-License-Identifier: Apache-2.0
"""A signature as it is attached, and the keys that can have made it."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey


class RejectedError(Exception):
    """The signature does not count; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One attached signature, nothing of it trusted."""

    payload: bytes
    signature: str  # base64
    certificate: str = ""  # PEM
    chain: str = ""  # PEM
    bundle: str = ""  # JSON of Rekor


def public_key(pem: bytes) -> PublicKey:
    """The key of a PEM file. Raises ValueError."""
    key = load_pem_public_key(pem)
    if not isinstance(key, PublicKey):
        raise ValueError(f"a key of the kind {type(key).__name__} cannot be used")  # noqa: TRY004
    return key


def verified(key: PublicKey, signature: bytes, message: bytes) -> bool:
    """Whether `key` made the signature of `message`, by SHA-256 where a hash is needed."""
    try:
        match key:
            case ec.EllipticCurvePublicKey():
                key.verify(signature, message, ec.ECDSA(SHA256()))
            case rsa.RSAPublicKey():
                key.verify(signature, message, padding.PKCS1v15(), SHA256())
            case ed25519.Ed25519PublicKey():
                key.verify(signature, message)
    except InvalidSignature:
        return False
    return True
