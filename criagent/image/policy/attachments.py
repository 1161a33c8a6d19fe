# SPDX-License-Identifier: Apache-2.0
"""The signatures that cosign attached to a manifest, in the manifest's own repository.

They are the layers of an image with the tag sha256-DIGEST.sig (cosign's specs/SIGNATURE_SPEC.md),
or bundles that refer to the manifest (cosign 3, specs/BUNDLE_SPEC.md).
"""

from __future__ import annotations

import msgspec

from criagent.base.errors import CorruptError, NotFoundError
from criagent.image.documents.digest import parse_digest
from criagent.image.documents.manifest import parse_document
from criagent.image.policy.signature import Signature
from criagent.image.registry import Progress, RegistryClient, Session

_PAYLOAD = "application/vnd.dev.cosign.simplesigning.v1+json"
_SIGNATURE = "dev.cosignproject.cosign/signature"
_CERTIFICATE = "dev.sigstore.cosign/certificate"
_CHAIN = "dev.sigstore.cosign/chain"
_BUNDLE = "dev.sigstore.cosign/bundle"
_BUNDLES = "application/vnd.dev.sigstore.bundle"  # and a version
# What lists name that were written by clients who took the type of the configuration for it.
_UNKNOWN = {
    "",
    "application/vnd.oci.empty.v1+json",
    "application/vnd.oci.image.config.v1+json",
}
_MOST = 64  # signatures of one manifest that are read, and referrers


async def signatures(
    client: RegistryClient, session: Session, digest: str, progress: Progress
) -> list[Signature]:
    """What is attached to the manifest `digest`; none when the registry has no such tag.

    Raises RegistryError and its kinds, CorruptError.
    """
    parsed = parse_digest(digest)
    tag = f"{parsed.algorithm}-{parsed.hex}.sig"
    try:
        resolved = await client.manifest(session, tag, progress)
    except NotFoundError:
        return []
    document = parse_document(resolved.content, resolved.media_type)
    layers = [layer for layer in document.layers or () if layer.media_type == _PAYLOAD]
    if len(layers) > _MOST:
        raise CorruptError(f"{session.reference.name}:{tag} has more than {_MOST} signatures")
    found = []
    for layer in layers:
        notes = layer.annotations
        found.append(
            Signature(
                payload=await client.document(session, layer, progress),
                signature=notes.get(_SIGNATURE, ""),
                certificate=notes.get(_CERTIFICATE, ""),
                chain=notes.get(_CHAIN, ""),
                bundle=notes.get(_BUNDLE, ""),
            )
        )
    return found


class _Referrer(msgspec.Struct, rename="camel"):
    digest: str
    artifact_type: str = ""


class _Referrers(msgspec.Struct):
    manifests: list[_Referrer] = []


async def bundles(
    client: RegistryClient, session: Session, digest: str, progress: Progress
) -> list[bytes]:
    """The sigstore bundles that refer to the manifest `digest`.

    Raises RegistryError and its kinds, CorruptError.
    """
    try:
        pages = await client.referrers(session, parse_digest(digest), progress)
    except NotFoundError:
        return []
    try:
        listed = [
            one for page in pages for one in msgspec.json.decode(page, type=_Referrers).manifests
        ]
    except msgspec.DecodeError as error:
        raise CorruptError(f"the referrers of {digest} cannot be read: {error}") from None
    found: list[bytes] = []
    candidates = [
        one
        for one in listed
        if one.artifact_type.startswith(_BUNDLES) or one.artifact_type in _UNKNOWN
    ]
    if len(candidates) > _MOST:
        raise CorruptError(f"{session.reference.name}@{digest} has more than {_MOST} referrers")
    for one in candidates:
        resolved = await client.manifest(session, str(parse_digest(one.digest)), progress)
        document = parse_document(resolved.content, resolved.media_type)
        for layer in (document.layers or ())[:1]:
            if layer.media_type.startswith(_BUNDLES):
                found.append(await client.document(session, layer, progress))
    return found
