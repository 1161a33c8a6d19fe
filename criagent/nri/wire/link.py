# SPDX-License-Identifier: Apache-2.0
"""The connection to one plugin: our calls with their answers, its calls with ours.

Calls run side by side. One that exceeds its limit is forgotten, and its answer is dropped.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import struct
from collections.abc import Awaitable, Callable

import structlog

from criagent._proto import ttrpc_pb2
from criagent.nri.wire import mux, ttrpc

PLUGIN = "nri.pkg.api.v1alpha1.Plugin"
RUNTIME = "nri.pkg.api.v1alpha1.Runtime"

# Given the method and the payload of a plugin's call, answers it. Raises RefusedError.
Serve = Callable[[str, bytes], Awaitable[bytes]]

_READ = 64 << 10
_UNREAD_MOST = 16 << 20  # bytes that wait for a plugin that does not read
_SERVED_MOST = 16  # calls of a plugin at a time

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class RefusedError(Exception):
    """The other side answered with a status that is not OK; the connection is intact."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class LostError(Exception):
    """The connection ended, or broke the protocol, before an answer came."""


@dataclasses.dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end (SO_PEERCRED of man 7 unix)."""

    pid: int
    uid: int


def peer_of(connection: socket.socket) -> Peer:
    """Whoever connected, or made the pair of sockets."""
    form = struct.Struct("3i")
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, form.size)
    pid, uid, _gid = form.unpack(found)
    return Peer(pid, uid)


class Link:
    """`run` must run while the link is used. It ends with the connection."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, serve: Serve
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._serve = serve
        self._next = 1
        self._calls: dict[int, asyncio.Future[bytes]] = {}
        self._served = 0
        self._reason = ""
        self.silent = True  # nothing has been received

    @property
    def open(self) -> bool:
        """Whether calls can be made."""
        return not self._reason

    @property
    def reason(self) -> str:
        """Why it is not open, "" = it is."""
        return self._reason

    async def call(self, method: str, payload: bytes, limit_s: float) -> bytes:
        """The payload of the plugin's answer.

        Raises RefusedError with the plugin's text, LostError, TimeoutError, and OversizedError
        when the call is above ttrpc's limit and was not sent.
        """
        if not self.open:
            raise LostError(self._reason)
        number = self._next
        data = ttrpc.request(number, PLUGIN, method, payload, timeout_s=limit_s)
        self._next += 2
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        try:
            self._send(mux.PLUGIN_SERVICE, data)
            async with asyncio.timeout(limit_s):
                return await answer
        finally:
            self._calls.pop(number, None)

    async def run(self) -> None:
        """Receive until the connection ends, is closed or breaks the protocol."""
        demultiplexer = mux.Demultiplexer()
        readers = {mux.PLUGIN_SERVICE: ttrpc.Reader(), mux.RUNTIME_SERVICE: ttrpc.Reader()}
        try:
            async with asyncio.TaskGroup() as group:
                while data := await self._reader.read(_READ):
                    self.silent = False
                    for stream, payload in demultiplexer.feed(data):
                        reader = readers.get(stream)
                        if reader is None:
                            continue  # as in Go: what nobody has opened is dropped
                        for message in reader.feed(payload):
                            self._received(stream, message, group)
                self.close("the plugin closed the connection")
        except* (mux.MuxError, ttrpc.TtrpcError) as broken:
            self.close(f"the plugin sent what is not ttrpc: {broken.exceptions[0]}")
        except* OSError as broken:
            self.close(f"the connection failed: {broken.exceptions[0]}")
        finally:
            self.close("the connection was closed")

    def close(self, reason: str) -> None:
        """End the connection; the first reason counts."""
        if not self.open:
            return
        self._reason = reason
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(LostError(reason))
        self._writer.transport.abort()

    def _received(self, stream: int, message: ttrpc.Message, group: asyncio.TaskGroup) -> None:
        if stream == mux.PLUGIN_SERVICE:
            if message.kind != ttrpc.Kind.RESPONSE:
                raise ttrpc.TtrpcError(f"a message of type {message.kind} instead of a response")
            self._answered(message)
        elif message.kind == ttrpc.Kind.REQUEST:
            group.create_task(self._answer(message.call, ttrpc.parsed_request(message.body)))

    def _answered(self, message: ttrpc.Message) -> None:
        answer = self._calls.get(message.call)
        found = ttrpc.parsed_response(message.body)
        if answer is None or answer.done():
            return  # its limit has passed
        if found.status.code != ttrpc.Code.OK:
            answer.set_exception(RefusedError(found.status.code, found.status.message))
        else:
            answer.set_result(found.payload)

    async def _answer(self, number: int, asked: ttrpc_pb2.Request) -> None:
        if asked.service != RUNTIME:
            text = f"service {asked.service[:80]}"
            data = ttrpc.response(number, b"", ttrpc.Code.UNIMPLEMENTED, text)
        elif self._served >= _SERVED_MOST:
            text = f"more than {_SERVED_MOST} calls at a time"
            data = ttrpc.response(number, b"", ttrpc.Code.RESOURCE_EXHAUSTED, text)
        else:
            self._served += 1
            try:
                data = ttrpc.response(number, await self._serve(asked.method, asked.payload))
            except RefusedError as refused:
                data = ttrpc.response(number, b"", refused.code, str(refused))
            except Exception as failure:  # a plugin's call must not end the connection's task
                log.exception("nri_call_failed", method=asked.method[:80])
                data = ttrpc.response(number, b"", ttrpc.Code.UNKNOWN, type(failure).__name__)
            finally:
                self._served -= 1
        if self.open:
            self._send(mux.RUNTIME_SERVICE, data)

    def _send(self, stream: int, data: bytes) -> None:
        self._writer.write(mux.frames(stream, data))
        if self._writer.transport.get_write_buffer_size() > _UNREAD_MOST:
            self.close(f"the plugin did not read {_UNREAD_MOST >> 20} MiB that it was sent")
