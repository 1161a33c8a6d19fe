# SPDX-License-Identifier: Apache-2.0
"""Cipher suites of TLS 1.2 by their IANA names, which OpenSSL calls otherwise.

They are those with forward secrecy and an AEAD (RFC 9325 section 4.2).
"""

from __future__ import annotations

from collections.abc import Sequence

OPENSSL = {
    f"TLS_ECDHE_{key}_WITH_{cipher}": f"ECDHE-{key}-{name}"
    for key in ("ECDSA", "RSA")
    for cipher, name in (
        ("AES_128_GCM_SHA256", "AES128-GCM-SHA256"),
        ("AES_256_GCM_SHA384", "AES256-GCM-SHA384"),
        ("CHACHA20_POLY1305_SHA256", "CHACHA20-POLY1305"),
    )
}
_OLD = "TLS_ECDHE_{}_WITH_CHACHA20_POLY1305"  # Go's names of earlier years
OPENSSL |= {_OLD.format(key): f"ECDHE-{key}-CHACHA20-POLY1305" for key in ("ECDSA", "RSA")}


def check(names: Sequence[str]) -> None:
    """Raises ValueError for a suite that is not among them."""
    for name in names:
        if name not in OPENSSL:
            raise ValueError(
                f"{name[:80]!r} is not a cipher suite that is offered; use {', '.join(OPENSSL)}"
            )
