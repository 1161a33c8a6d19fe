# SPDX-License-Identifier: Apache-2.0
"""Auth files for pods of one namespace, as CRI-O's credential provider for the kubelet writes them.

DIRECTORY/NAMESPACE-SHA256.json, where SHA256 is the digest of the image's name with its registry,
without tag and digest. A file is for one pull: it is removed once it was read.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import structlog

from criagent.base.errors import InvalidRequestError
from criagent.image.documents.reference import parse_reference

_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # a DNS label (RFC 1123)
_LARGEST = 1 << 20  # bytes

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def taken(directory: Path, namespace: str, image: str) -> bytes:
    """The content of the file for a pull, which is removed; b"" when there is none.

    Raises InvalidRequestError that names a file which cannot be read.
    """
    if not _NAMESPACE.fullmatch(namespace):
        return b""
    name = parse_reference(image).name
    file = directory / f"{namespace}-{hashlib.sha256(name.encode()).hexdigest()}.json"
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise InvalidRequestError(f"the auth file {file}: {error.strerror}") from None
    try:
        with open(fd, "rb") as stream:
            content = stream.read(_LARGEST + 1)
    except OSError as error:
        raise InvalidRequestError(f"the auth file {file}: {error.strerror}") from None
    try:
        file.unlink()
    except OSError as error:
        log.warning("auth_file_not_removed", file=str(file), error=error.strerror)
    return content or b"{}"
