# SPDX-License-Identifier: Apache-2.0
"""pod.json: what a checkpoint of a pod consists of, signed with a key of this node.

    {"hmac": "…", "manifest": {"version": 1, "sandbox": {…}, "containers": [{…}], …}}

CRIU's images are code that CRIU runs as root when it restores them. Whoever can change an archive
could have any code run, so the digest of each is in the manifest, and the manifest is signed.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Final

import msgspec

from criagent.base.errors import InvalidRequestError
from criagent.model.container import Container
from criagent.model.sandbox import Sandbox
from criagent.store.settings import SettingStore

NAME: Final = "pod.json"
VERSION: Final = 1
_SETTING = "checkpoint_key"


class Archived(msgspec.Struct, frozen=True, kw_only=True):
    """One container: its row, and its archive in the same directory."""

    container: Container
    archive: str
    sha256: str
    size: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A pod's checkpoint. `shm` is the archive of its /dev/shm, "" = it has none of its own."""

    version: int
    made_at_ns: int
    agent: str
    handler: str
    sandbox: Sandbox
    containers: tuple[Archived, ...]
    shm: str = ""
    shm_sha256: str = ""


class _Signed(msgspec.Struct, frozen=True, kw_only=True):
    hmac: str
    manifest: msgspec.Raw


class ManifestKey:
    """The node's key, made when it is first needed."""

    def __init__(self, settings: SettingStore) -> None:
        self._settings = settings

    async def sign(self, manifest: Manifest) -> bytes:
        """The content of pod.json."""
        key = self._settings.get(_SETTING)
        if key is None:
            key = secrets.token_hex(32)
            await self._settings.put(_SETTING, key)
        body = msgspec.json.encode(manifest)
        return msgspec.json.encode(_Signed(hmac=_mac(key, body), manifest=msgspec.Raw(body)))

    def verified(self, content: bytes) -> Manifest:
        """The manifest in the content of pod.json.

        Nothing but the signature is looked at before that is known to be this node's. Raises
        InvalidRequestError.
        """
        try:
            signed = msgspec.json.decode(content, type=_Signed)
        except (msgspec.MsgspecError, ValueError) as exc:
            raise InvalidRequestError(f"{NAME} of the checkpoint is malformed: {exc}") from exc
        key = self._settings.get(_SETTING)
        body = bytes(signed.manifest)
        if key is None or not hmac.compare_digest(_mac(key, body).encode(), signed.hmac.encode()):
            raise InvalidRequestError(
                f"{NAME} was not signed by this node, or was changed since; a pod can be restored "
                "only on the node that has made its checkpoint"
            )
        try:
            manifest = msgspec.json.decode(body, type=Manifest)
        except (msgspec.MsgspecError, ValueError, TypeError) as exc:
            raise InvalidRequestError(
                f"{NAME} is from another version of criagent: {str(exc)[:200]}"
            ) from exc
        if manifest.version != VERSION:
            raise InvalidRequestError(
                f"{NAME} has version {manifest.version}; this criagent reads {VERSION}"
            )
        return manifest


def _mac(key: str, body: bytes) -> str:
    return hmac.new(bytes.fromhex(key), body, hashlib.sha256).hexdigest()
