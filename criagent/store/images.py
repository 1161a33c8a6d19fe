# SPDX-License-Identifier: Apache-2.0
"""Image rows. One transaction makes an image, its layers and its blobs visible together."""

from __future__ import annotations

import dataclasses
import re
import sqlite3
from collections.abc import Callable, Sequence

from criagent.base.errors import NotFoundError
from criagent.model.image import Blob, Image, PlatformNames, Snapshot
from criagent.store.blobs import BlobStore, insert_blob
from criagent.store.codec import RowCodec
from criagent.store.db import Database
from criagent.store.listeners import notify
from criagent.store.snapshots import SnapshotStore, update_snapshot

_CODEC = RowCodec(Image)
_ID_PREFIX = re.compile(r"[0-9a-f]{3,64}")  # as short as crictl prints and people type


class ImageStore:
    """Images by id, tag and repo digest; a tag names at most one image of a platform."""

    def __init__(self, db: Database, snapshots: SnapshotStore, blobs: BlobStore) -> None:
        self._db = db
        self._snapshots = snapshots
        self._blobs = blobs
        self._rows: dict[str, Image] = {}
        self._names: dict[tuple[str, str], str] = {}  # ids by platform, "" = this node's, and name
        self.listeners: list[Callable[[str, Image | None], None]] = []
        for image in db.load("images", _CODEC):
            self._remember(image)

    def all(self) -> list[Image]:
        """Every image, in no order."""
        return list(self._rows.values())

    def find(self, name: str, platform: str = "") -> Image | None:
        """The image of a canonical tag, repo digest, id, bare hex id or unique hex prefix.

        Tags and digests are those of `platform`, "" = this node's.
        """
        if image := self._rows.get(name) or self._rows.get(f"sha256:{name}"):
            return image
        if (image_id := self._names.get((platform, name))) is not None:
            return self._rows[image_id]
        bare = name.removeprefix("sha256:")
        if _ID_PREFIX.fullmatch(bare) is None:
            return None
        found = [i for i in self._rows.values() if i.id.removeprefix("sha256:").startswith(bare)]
        return found[0] if len(found) == 1 else None

    async def put(
        self, image: Image, snapshots: Sequence[Snapshot] = (), blobs: Sequence[Blob] = ()
    ) -> Image:
        """Add the image, or give an existing one of its id the new names; returns what is stored.

        Tags of other images move here. Snapshots and blobs become visible in the same commit.
        """

        def change(connection: sqlite3.Connection) -> list[Image]:
            for snapshot in snapshots:
                update_snapshot(connection, snapshot)
            for blob in blobs:
                insert_blob(connection, blob)
            return _add(connection, image)

        def then(changed: list[Image]) -> None:
            for snapshot in snapshots:
                self._snapshots.remember(snapshot)
            for blob in blobs:
                self._blobs.remember(blob)
            for row in reversed(changed):
                self._committed(row)

        return (await self._db.write(change, then=then))[0]

    async def tag(self, image_id: str, tag: str) -> Image:
        """Add a tag to the image, which moves here from any other; returns what is stored.

        Raises NotFoundError when the image no longer exists.
        """

        def change(connection: sqlite3.Connection) -> list[Image]:
            query = "SELECT body FROM images WHERE id = ?"
            found = _load_all(connection.execute(query, (image_id,)).fetchall())
            if not found:
                raise NotFoundError(f'image "{image_id}" was removed meanwhile; pull it again')
            return _add(connection, dataclasses.replace(found[0], repo_tags=(tag,)))

        def then(changed: list[Image]) -> None:
            for row in reversed(changed):
                self._committed(row)

        return (await self._db.write(change, then=then))[0]

    async def rename(self, image: Image) -> None:
        """Replace the image's names by those of `image`; no effect when it no longer exists."""

        def change(connection: sqlite3.Connection) -> list[Image]:
            query = "SELECT body FROM images WHERE id = ?"
            found = _load_all(connection.execute(query, (image.id,)).fetchall())
            changed = [
                dataclasses.replace(row, repo_tags=image.repo_tags, repo_digests=image.repo_digests)
                for row in found
            ]
            for row in changed:
                connection.execute(
                    "UPDATE images SET body = ? WHERE id = ?", (_CODEC.encode(row), row.id)
                )
            return changed

        def then(changed: list[Image]) -> None:
            for row in changed:
                self._committed(row)

        await self._db.write(change, then=then, frees=True)

    async def delete(self, image_id: str) -> None:
        """Delete the image with all its names; no effect when it does not exist."""

        def change(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM images WHERE id = ?", (image_id,))

        await self._db.write(change, then=lambda _: self._forget(image_id), frees=True)

    def _remember(self, image: Image) -> None:
        for name in self._names_of(self._rows.get(image.id)):
            self._names.pop(name, None)
        self._rows[image.id] = image
        for name in self._names_of(image):
            self._names[name] = image.id

    def _committed(self, image: Image) -> None:
        self._remember(image)
        notify(self.listeners, image.id, image)

    def _forget(self, image_id: str) -> None:
        image = self._rows.pop(image_id, None)
        for name in self._names_of(image):
            if self._names.get(name) == image_id:
                del self._names[name]
        notify(self.listeners, image_id, None)

    @staticmethod
    def _names_of(image: Image | None) -> list[tuple[str, str]]:
        if image is None:
            return []
        named = [("", name) for name in (*image.repo_tags, *image.repo_digests)]
        for names in image.elsewhere:
            every = (*names.repo_tags, *names.repo_digests)
            named += [(names.platform, name) for name in every]
        return named


def _add(connection: sqlite3.Connection, image: Image) -> list[Image]:
    """Write the image and those whose tags it took; returns them, itself first."""
    rows = _load_all(connection.execute("SELECT body FROM images").fetchall())
    changed = [_merged(image, rows), *_without_tags(image, rows)]
    for row in changed:
        connection.execute(
            "INSERT OR REPLACE INTO images (id, body) VALUES (?, ?)",
            (row.id, _CODEC.encode(row)),
        )
    return changed


def _load_all(rows: Sequence[tuple[bytes]]) -> list[Image]:
    return [_CODEC.decode(body) for (body,) in rows]


def _merged(image: Image, rows: Sequence[Image]) -> Image:
    old = next((row for row in rows if row.id == image.id), None)
    if old is None:
        return image
    return dataclasses.replace(
        image,
        repo_tags=tuple(dict.fromkeys((*old.repo_tags, *image.repo_tags))),
        repo_digests=tuple(dict.fromkeys((*old.repo_digests, *image.repo_digests))),
        pulled_at_ns=old.pulled_at_ns or image.pulled_at_ns,
        elsewhere=_joined(old.elsewhere, image.elsewhere),
    )


def _joined(
    old: Sequence[PlatformNames], new: Sequence[PlatformNames]
) -> tuple[PlatformNames, ...]:
    """The names of both, by platform."""
    found = {names.platform: names for names in old}
    for names in new:
        known = found.get(names.platform, names)
        found[names.platform] = PlatformNames(
            platform=names.platform,
            repo_tags=tuple(dict.fromkeys((*known.repo_tags, *names.repo_tags))),
            repo_digests=tuple(dict.fromkeys((*known.repo_digests, *names.repo_digests))),
        )
    return tuple(found.values())


def _without_tags(image: Image, rows: Sequence[Image]) -> list[Image]:
    """The other rows that lose tags to `image`, each for the same platform."""
    moved = {"": set(image.repo_tags)}
    moved |= {names.platform: set(names.repo_tags) for names in image.elsewhere}
    changed = []
    for row in rows:
        left = dataclasses.replace(
            row,
            repo_tags=_kept(row.repo_tags, moved[""]),
            elsewhere=tuple(
                dataclasses.replace(
                    names, repo_tags=_kept(names.repo_tags, moved.get(names.platform, set()))
                )
                for names in row.elsewhere
            ),
        )
        if row.id != image.id and left != row:
            changed.append(left)
    return changed


def _kept(tags: Sequence[str], moved: set[str]) -> tuple[str, ...]:
    return tuple(tag for tag in tags if tag not in moved)
