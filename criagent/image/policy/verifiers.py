# SPDX-License-Identifier: Apache-2.0
"""Programs that decide about images: containerd's image verifiers (its docs/image-verification.md).

Every executable file of a directory is asked in name order, as

    PROGRAM -name REFERENCE -digest DIGEST -stdin-media-type application/vnd.oci.descriptor.v1+json

with the descriptor of the index or manifest on its standard input. It admits the image by exit
status 0; what it prints on standard output is the reason.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import structlog

from criagent.base.errors import SignatureRejectedError
from criagent.process import child

_DESCRIPTOR = "application/vnd.oci.descriptor.v1+json"
_MOST = 10  # programs, as with containerd
_REASON = 16 << 10  # bytes of output that are kept

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What was resolved: the reference, and the descriptor of its index or manifest."""

    reference: str
    digest: str
    media_type: str
    size: int


async def check(folder: Path, subject: Subject, limit_s: float) -> None:
    """Raises SignatureRejectedError unless every program admits the image.

    A directory that is missing or empty admits all, as with containerd.
    """
    for program in _programs(folder):
        await _ask(program, subject, limit_s)


def _programs(folder: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SignatureRejectedError(
            f"registry.verifier_dir {folder} cannot be read: {error.strerror}"
        ) from error
    found = [folder / name for name in names if _is_program(folder / name)]
    if len(found) > _MOST:
        raise SignatureRejectedError(
            f"registry.verifier_dir {folder} has {len(found)} programs; at most {_MOST} are run"
        )
    return found


def _is_program(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError:
        return True  # a broken link was meant to be a program; it fails when it is run
    return stat.S_ISREG(mode) and bool(mode & 0o111)


async def _ask(program: Path, subject: Subject, limit_s: float) -> None:
    descriptor = {
        "mediaType": subject.media_type,
        "digest": subject.digest,
        "size": subject.size,
    }
    argv = [
        str(program),
        "-name",
        subject.reference,
        "-digest",
        subject.digest,
        "-stdin-media-type",
        _DESCRIPTOR,
    ]
    try:
        ended = await child.run(
            argv,
            stdin=json.dumps(descriptor).encode(),
            limit_s=limit_s,
            keep=_REASON,
            options=child.Options(new_session=True),
        )
    except TimeoutError:
        raise SignatureRejectedError(
            f"{subject.reference}: the image verifier {program} has not answered for {limit_s:g} s"
        ) from None
    except OSError as error:
        raise SignatureRejectedError(
            f"{subject.reference}: the image verifier {program} cannot be run: {error.strerror}"
        ) from error
    if ended.stderr:
        log.info("image_verifier_output", program=program.name, text=ended.errors[:1000])
    if ended.status:
        reason = ended.output.strip()[:1000] or f"exit status {ended.status}"
        raise SignatureRejectedError(
            f"{subject.reference}: the image verifier {program.name} rejects it: {reason}"
        )
