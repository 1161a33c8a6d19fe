# SPDX-License-Identifier: Apache-2.0
"""The agent's own service, on the CRI socket: what its command line needs beyond the CRI."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import grpc

from criagent._proto import admin_pb2, admin_pb2_grpc
from criagent.base.aio import finish, run_in
from criagent.base.errors import InvalidRequestError
from criagent.cri.report import AgentReport
from criagent.image.archive.room import Room
from criagent.image.archive.sniff import START, check_start
from criagent.image.blobs import disk_full
from criagent.image.documents.reference import parse_reference
from criagent.image.images import Images, temporary
from criagent.image.layer_contents import Contents
from criagent.image.storage_report import storage_report

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
_CHUNK = 1 << 20


class DebugDocument(Protocol):
    """The daemon's own state as one JSON document."""

    def __call__(self, *, objects: bool) -> dict[str, Any]: ...


class Reloaded(Protocol):
    """Keys that took effect, and keys that wait for a restart."""

    @property
    def changed(self) -> list[str]: ...
    @property
    def need_restart(self) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class Operator:
    """What the daemon does for its operator. `reload` raises InvalidRequestError."""

    debug: DebugDocument
    reload: Callable[[], Awaitable[Reloaded]]


class AdminService(admin_pb2_grpc.AdminServicer):
    """Serves info, debug, storage info, import, export, tag, fsck and prune."""

    def __init__(
        self, report: AgentReport, images: Images, fs: Executor, operator: Operator
    ) -> None:
        self._operator = operator
        self._report = report
        self._images = images
        self._fs = fs

    async def Info(
        self, request: admin_pb2.InfoRequest, context: Context
    ) -> admin_pb2.InfoResponse:
        document = await self._report.document()
        return admin_pb2.InfoResponse(json=json.dumps(document))

    async def Debug(
        self, request: admin_pb2.DebugRequest, context: Context
    ) -> admin_pb2.DebugResponse:
        document = self._operator.debug(objects=request.objects)
        return admin_pb2.DebugResponse(json=json.dumps(document))

    async def Reload(
        self, request: admin_pb2.ReloadRequest, context: Context
    ) -> admin_pb2.ReloadResponse:
        outcome = await self._operator.reload()
        return admin_pb2.ReloadResponse(changed=outcome.changed, need_restart=outcome.need_restart)

    async def StorageInfo(
        self, request: admin_pb2.StorageInfoRequest, context: Context
    ) -> admin_pb2.StorageInfoResponse:
        document = await storage_report(self._images.content)
        return admin_pb2.StorageInfoResponse(json=json.dumps(document))

    async def ImportImages(
        self, request_iterator: AsyncIterator[admin_pb2.ImportImagesRequest], context: Context
    ) -> admin_pb2.ImportImagesResponse:
        start = (
            bytearray()
        )  # enough bytes to recognise an archive before any of it takes disk space
        async for message in request_iterator:
            start += message.chunk
            if len(start) >= START:
                break
        await run_in(self._fs, check_start, bytes(start))
        path = await run_in(self._fs, temporary, self._images.incoming())
        try:
            room = Room(path.parent)
            file = await run_in(self._fs, path.open, "wb")
            try:
                await run_in(self._fs, _write, file, bytes(start), room)
                async for message in request_iterator:
                    await run_in(self._fs, _write, file, message.chunk, room)
            finally:
                await finish(run_in(self._fs, file.close))
            imported = await self._images.import_archive(path)
        finally:
            await finish(run_in(self._fs, _unlink, path))
        return admin_pb2.ImportImagesResponse(
            images=[
                admin_pb2.ImportedImage(id=i.id, tags=i.repo_tags, digests=i.repo_digests)
                for i in imported.images
            ],
            skipped=[
                admin_pb2.SkippedEntry(entry=one.entry, reason=one.why) for one in imported.skipped
            ],
        )

    async def TagImage(
        self, request: admin_pb2.TagImageRequest, context: Context
    ) -> admin_pb2.TagImageResponse:
        image = await self._images.tag(request.image, request.tag)
        return admin_pb2.TagImageResponse(id=image.id, tags=image.repo_tags)

    async def RemoveImageName(
        self, request: admin_pb2.RemoveImageNameRequest, context: Context
    ) -> admin_pb2.RemoveImageNameResponse:
        names, removed = await self._images.remove_name(request.image)
        return admin_pb2.RemoveImageNameResponse(names=names, removed_id=removed)

    async def ExportImages(
        self, request: admin_pb2.ExportImagesRequest, context: Context
    ) -> AsyncIterator[admin_pb2.ExportImagesResponse]:
        if not request.images:
            raise InvalidRequestError("name at least one image to export")
        path = await run_in(self._fs, temporary, self._images.incoming())
        try:
            await self._images.export_archive(list(request.images), path)
            file: IO[bytes] = await run_in(self._fs, path.open, "rb")
            try:
                while chunk := await run_in(self._fs, file.read, _CHUNK):
                    yield admin_pb2.ExportImagesResponse(chunk=chunk)
            finally:
                await finish(run_in(self._fs, file.close))
        finally:
            await finish(run_in(self._fs, _unlink, path))

    async def Fsck(
        self, request: admin_pb2.FsckRequest, context: Context
    ) -> admin_pb2.FsckResponse:
        try:
            contents = Contents(request.contents)
        except ValueError:
            raise InvalidRequestError(
                f'contents must be "", "sample" or "full", not {request.contents[:40]!r}'
            ) from None
        report = await self._images.fsck(repair=request.repair, contents=contents)
        return admin_pb2.FsckResponse(
            findings=[
                admin_pb2.Finding(problem=f.problem, object=f.object, repaired=f.repaired)
                for f in report.findings
            ],
            layers_compared=report.compared.layers,
            not_compared=[
                admin_pb2.Finding(problem=why, object=layer)
                for layer, why in report.compared.left_out.items()
            ],
        )

    async def PullProgress(
        self, request: admin_pb2.PullProgressRequest, context: Context
    ) -> admin_pb2.PullProgressResponse:
        reference = parse_reference(request.image)
        received, expected = self._images.puller.progress(reference)
        return admin_pb2.PullProgressResponse(received_bytes=received, expected_bytes=expected)

    async def Prune(
        self, request: admin_pb2.PruneRequest, context: Context
    ) -> admin_pb2.PruneResponse:
        result = await self._images.prune()
        return admin_pb2.PruneResponse(
            freed_bytes=result.freed_bytes, blobs=result.blobs, snapshots=result.snapshots
        )


def _write(file: IO[bytes], chunk: bytes, room: Room) -> None:
    room.take(len(chunk))
    with disk_full(room.where):
        file.write(chunk)


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)
