# SPDX-License-Identifier: Apache-2.0
"""The signatures that cosign attached to a manifest, in the manifest's own repository.

They are the layers of an image with the tag sha256-DIGEST.sig (cosign's specs/SIGNATURE_SPEC.md).
Bundles that are found by the referrers API (cosign 3) are not read.
"""

from __future__ import annotations

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
_MOST = 64  # signatures of one manifest that are read


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
