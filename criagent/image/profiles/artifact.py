# SPDX-License-Identifier: Apache-2.0
"""The form of a profile's artifact (KEP-6061, "OCI Artifact Format"): one layer, the document.

The kind is in the media type of the configuration, or in `artifactType` beside the empty one. The
layer's media type says nothing: tools give it that of a tar archive. Texts begin with the word by
which the kubelet knows that to try again is useless.
"""

from __future__ import annotations

from criagent.base.errors import CorruptError, InvalidRequestError, UnsupportedError
from criagent.image.documents.manifest import (
    DOCKER_MANIFEST,
    EMPTY_CONFIG,
    Descriptor,
    parse_document,
)
from criagent.image.documents.reference import Reference, parse_reference

SECCOMP = "application/vnd.cncf.seccomp-profile.config.v1+json"
MAX_PROFILE = 1 << 20  # bytes, the limit of the field


def invalid(what: str, why: str) -> InvalidRequestError:
    """The error for a request or an artifact that never becomes right."""
    return InvalidRequestError(f"SecurityProfileInvalid: {what}: {why}")


def pinned(text: str) -> Reference:
    """The reference `text` without its tag. Raises InvalidRequestError unless it has a digest."""
    what = f"security profile {text[:160]!r}"
    try:
        reference = parse_reference(text)
    except InvalidRequestError as exc:
        raise invalid(what, str(exc)) from None
    if reference.digest is None:
        raise invalid(what, "the reference has no digest; write name@sha256:…")
    if not text.startswith(f"{reference.registry}/"):
        raise invalid(what, f"the reference names no registry; write {reference.name}@sha256:…")
    return Reference(
        registry=reference.registry, repository=reference.repository, digest=reference.digest
    )


def profile_layer(what: str, content: bytes, media_type: str) -> Descriptor:
    """The layer of the seccomp profile whose manifest is `content`. Raises InvalidRequestError."""
    try:
        document = parse_document(content, media_type)
    except (CorruptError, UnsupportedError) as exc:
        raise invalid(what, str(exc)) from None
    if document.is_index:
        raise invalid(what, "it is an index; name the digest of a manifest in it")
    config = document.config
    if config is None or document.media_type == DOCKER_MANIFEST:
        raise invalid(what, "its manifest is not an OCI manifest; push it as an OCI artifact")
    kind = config.media_type
    if kind == EMPTY_CONFIG:
        kind = document.artifact_type
    elif document.artifact_type not in {"", kind}:
        raise invalid(
            what,
            f"its artifactType {document.artifact_type[:100]!r} is not the media type of its "
            f"configuration {kind[:100]!r}",
        )
    if kind != SECCOMP:
        raise invalid(what, f"it has the type {kind[:100]!r}; a seccomp profile has {SECCOMP}")
    if len(document.layers) != 1:
        raise invalid(what, f"it has {len(document.layers)} layers; a profile has exactly one")
    layer = document.layers[0]
    if layer.urls:
        raise invalid(what, "its layer is outside the registry (urls); push it with its content")
    if layer.size > MAX_PROFILE:
        raise invalid(what, f"it has {layer.size} bytes; the limit is {MAX_PROFILE}")
    return layer
