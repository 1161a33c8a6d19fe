# SPDX-License-Identifier: Apache-2.0
"""A certificate of Fulcio: issued for minutes to whoever an OIDC provider says it is.

The chain is verified at the time at which the log took the signature in, up to an authority that
the policy names. Certificates may have critical extensions that are checked here and no others (RFC
5280, section 4.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, ObjectIdentifier

from criagent.image.policy.document import Fulcio
from criagent.image.policy.signature import PublicKey, RejectedError, Signature

_ISSUER = ObjectIdentifier("1.3.6.1.4.1.57264.1.1")  # the issuer's URL as it is
_ISSUER_V2 = ObjectIdentifier("1.3.6.1.4.1.57264.1.8")  # the same as a UTF8String of DER
_UTF8_STRING = 0x0C
_LONG_LENGTH = 0x80
_LONGEST = 4  # certificates between the leaf and a root
_KNOWN = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    }
)


def certified_key(wanted: Fulcio, roots: bytes, found: Signature, seconds: int) -> PublicKey:
    """The key that the certificate of the signature certifies, at a Unix time in seconds.

    Raises RejectedError unless the certificate is one of the policy's authorities for the wanted
    issuer and address, ValueError for authorities that cannot be read.
    """
    authorities = x509.load_pem_x509_certificates(roots)
    if not found.certificate:
        raise RejectedError("it has no certificate")
    try:
        leaf = x509.load_pem_x509_certificate(found.certificate.encode())
        chain = x509.load_pem_x509_certificates(found.chain.encode()) if found.chain else []
        moment = datetime.fromtimestamp(seconds, UTC)
        _check_chain(leaf, chain, authorities, moment)
        _check_subject(leaf, wanted)
        key = leaf.public_key()
    except (ValueError, OverflowError, OSError, x509.ExtensionNotFound) as error:
        raise RejectedError(f"its certificate cannot be used: {error}") from None
    if not isinstance(key, PublicKey):
        raise RejectedError(f"its certificate has a key of the kind {type(key).__name__}")
    return key


def _check_chain(
    leaf: x509.Certificate,
    chain: Sequence[x509.Certificate],
    authorities: Sequence[x509.Certificate],
    moment: datetime,
) -> None:
    usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    if ExtendedKeyUsageOID.CODE_SIGNING not in usages:
        raise RejectedError("its certificate is not for signing code")
    current = leaf
    for below in range(_LONGEST):  # authorities below the one that issued `current`
        _check_certificate(current, moment)
        root = _issuer(current, authorities)
        above = root or _issuer(current, chain)
        if above is None:
            break
        _check_authority(above, moment, below)
        if root is not None:
            return
        current = above
    raise RejectedError("no authority of the policy issued its certificate")


def _issuer(
    certificate: x509.Certificate, candidates: Sequence[x509.Certificate]
) -> x509.Certificate | None:
    for candidate in candidates:
        try:
            certificate.verify_directly_issued_by(candidate)
        except (InvalidSignature, ValueError, TypeError):
            continue
        return candidate
    return None


def _check_authority(authority: x509.Certificate, moment: datetime, below: int) -> None:
    _check_certificate(authority, moment)
    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
    usage = authority.extensions.get_extension_for_class(x509.KeyUsage).value
    if not constraints.ca or not usage.key_cert_sign:
        raise RejectedError("its certificate was issued by another than an authority")
    if constraints.path_length is not None and below > constraints.path_length:
        raise RejectedError("its certificate has more authorities above than their own allow")


def _check_certificate(certificate: x509.Certificate, moment: datetime) -> None:
    if not certificate.not_valid_before_utc <= moment <= certificate.not_valid_after_utc:
        raise RejectedError(f"its certificate was not valid when it signed, at {moment:%F %T} UTC")
    for extension in certificate.extensions:
        if extension.critical and extension.oid not in _KNOWN:
            name = extension.oid.dotted_string
            raise RejectedError(f"its certificate has the unknown critical extension {name}")


def _check_subject(leaf: x509.Certificate, wanted: Fulcio) -> None:
    issuer = _oidc_issuer(leaf)
    if issuer != wanted.oidc_issuer:
        raise RejectedError(f"its certificate is for a user of {issuer[:200]!r}")
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = names.get_values_for_type(x509.RFC822Name)
    if wanted.subject_email not in addresses:
        raise RejectedError(f"its certificate is for {', '.join(addresses)[:200]!r}")


def _oidc_issuer(leaf: x509.Certificate) -> str:
    """The issuer; when a certificate has both forms, they have to agree."""
    found = []
    for extension in leaf.extensions:
        value = extension.value
        if not isinstance(value, x509.UnrecognizedExtension):
            continue
        if extension.oid == _ISSUER:
            found.append(value.value.decode())
        elif extension.oid == _ISSUER_V2:
            found.append(_utf8_string(value.value))
    if len(set(found)) != 1:
        raise RejectedError("its certificate names no OIDC issuer, or several")
    return found[0]


def _utf8_string(der: bytes) -> str:
    """Raises ValueError for anything but one UTF8String (ITU-T X.690) of fewer than 128 bytes."""
    if len(der) < 2 or der[0] != _UTF8_STRING or der[1] >= _LONG_LENGTH or der[1] != len(der) - 2:
        raise ValueError("the OIDC issuer must be a UTF8String")
    return der[2:].decode()
