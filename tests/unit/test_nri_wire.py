# SPDX-License-Identifier: Apache-2.0
"""NRI on the wire: bytes of the stub that plugins in Go are made with, whole and in pieces."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from criagent._proto import nri_pb2
from criagent.nri.wire import mux, ttrpc
from criagent.nri.wire.link import Link, LostError, RefusedError
from tests.unit.test_proto_table import of_enum, of_message

VECTORS = Path(__file__).parents[1] / "vectors"
SERVICE = "nri.pkg.api.v1alpha1.Plugin"


def turns(side: str) -> list[bytes]:
    """What one side of the recorded connection sent, turn by turn."""
    recorded = json.loads((VECTORS / "nri-stub.json").read_text())["turns"]
    return [bytes.fromhex(data) for who, data in recorded if who == side]


def messages(data: bytes, pieces: int) -> list[tuple[int, ttrpc.Message]]:
    demultiplexer = mux.Demultiplexer()
    readers = {1: ttrpc.Reader(), 2: ttrpc.Reader()}
    return [
        (stream, message)
        for at in range(0, len(data), pieces)
        for stream, payload in demultiplexer.feed(data[at : at + pieces])
        for message in readers[stream].feed(payload)
    ]


@pytest.mark.parametrize("pieces", [1, 7, 1 << 20])
def test_what_a_real_plugin_sends(pieces: int) -> None:
    first, *others = messages(b"".join(turns("plugin")), pieces)
    assert first[0] == mux.RUNTIME_SERVICE
    asked = ttrpc.parsed_request(first[1].body)
    assert (asked.service, asked.method) == ("nri.pkg.api.v1alpha1.Runtime", "RegisterPlugin")
    assert nri_pb2.RegisterPluginRequest.FromString(asked.payload) == nri_pb2.RegisterPluginRequest(
        plugin_name="rec", plugin_idx="07", NRI_version="v0.12.5"
    )
    assert {stream for stream, _ in others} == {mux.PLUGIN_SERVICE}
    assert [message.call for _, message in others] == [1, 3, 5, 7, 9, 11]
    answers = [ttrpc.parsed_response(message.body) for _, message in others]
    assert nri_pb2.ConfigureResponse.FromString(answers[0].payload).events == 0b1001
    adjusted = nri_pb2.CreateContainerResponse.FromString(answers[2].payload).adjust
    assert adjusted.linux.resources.cpu.shares.value == 77
    assert (answers[3].status.code, answers[3].status.message) == (2, "no, web-0")
    assert answers[5].status.code == ttrpc.Code.UNIMPLEMENTED


def test_our_bytes_are_what_the_plugin_was_sent() -> None:
    pod = nri_pb2.PodSandbox(id="p", name="web-0")
    payload = nri_pb2.RunPodSandboxRequest(pod=pod).SerializeToString()
    ours = mux.frames(1, ttrpc.request(7, SERVICE, "RunPodSandbox", payload, timeout_s=2))
    assert ours == turns("agent")[3]


@pytest.mark.parametrize(
    ("size", "frames"), [(10, [10]), (4096, [4096]), (4097, [4096, 1]), (99999, [4096, 95903])]
)
def test_a_message_is_divided_as_go_divides_it(size: int, frames: list[int]) -> None:
    """A plugin in Go cannot read a first frame above 4096 bytes, nor one across two messages."""
    found = list(mux.Demultiplexer().feed(mux.frames(2, b"x" * size)))
    assert [(stream, len(payload)) for stream, payload in found] == [(2, n) for n in frames]


def test_limits() -> None:
    with pytest.raises(mux.MuxError, match="4294967295 bytes"):
        list(mux.Demultiplexer().feed(b"\0\0\0\1" + b"\xff" * 4))
    with pytest.raises(ttrpc.TtrpcError, match="4194305 bytes"):
        list(ttrpc.Reader().feed((4194305).to_bytes(4, "big") + b"\0" * 6))
    with pytest.raises(ttrpc.OversizedError):
        ttrpc.request(1, SERVICE, "Synchronize", b"x" * (4 << 20), timeout_s=2)
    with pytest.raises(ttrpc.TtrpcError):
        ttrpc.parsed_response(b"\xff\xff")


def test_the_messages_are_the_interface() -> None:
    """proto/nri says exactly what the table of the interface says, without WebAssembly's part."""
    with (VECTORS / "nri-v1alpha1.tsv").open() as file:
        wanted = {
            tuple(value or "" for value in row.values())
            for row in csv.DictReader(file, delimiter="\t")
            if row["kind"] != "rpc" and not row["parent"].startswith("LogRequest")
        }
    found: set[tuple[str, ...]] = set()
    for message in nri_pb2.DESCRIPTOR.message_types_by_name.values():
        rows = of_message(message)
        if message.name == "Names":  # holds an enum of the interface that has None in it
            rows = [(k, "Field", v.removesuffix("_"), *rest) for k, _, v, *rest in rows[1:]]
        found |= set(rows)
    for enum in nri_pb2.DESCRIPTOR.enum_types_by_name.values():
        found |= set(of_enum(enum, enum.name))
    assert found == wanted


class OtherSide:
    """A plugin by hand: the other end of a link's socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._demultiplexer = mux.Demultiplexer()
        self._readers = {1: ttrpc.Reader(), 2: ttrpc.Reader()}
        self._read: list[ttrpc.Message] = []

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._connection, data)

    async def received(self) -> ttrpc.Message:
        while not self._read:
            data = await asyncio.get_running_loop().sock_recv(self._connection, 1 << 16)
            if not data:
                raise EOFError
            for stream, payload in self._demultiplexer.feed(data):
                self._read += self._readers[stream].feed(payload)
        return self._read.pop(0)

    def close(self) -> None:
        self._connection.close()


async def echo(method: str, payload: bytes) -> bytes:
    if method == "no":
        raise RefusedError(ttrpc.Code.INVALID_ARGUMENT, "not that")
    return payload


@contextlib.asynccontextmanager
async def linked() -> AsyncIterator[tuple[Link, OtherSide]]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    link = Link(*await asyncio.open_unix_connection(sock=ours), echo)
    other = OtherSide(theirs)
    running = asyncio.create_task(link.run())
    try:
        yield link, other
    finally:
        other.close()
        link.close("the test is over")
        await running


async def test_answers_find_their_calls_in_any_order() -> None:
    async with linked() as (link, other):
        one = asyncio.create_task(link.call("A", b"1", 5))
        two = asyncio.create_task(link.call("B", b"2", 5))
        numbers = [(await other.received()).call, (await other.received()).call]
        for number in reversed(numbers):
            await other.send(mux.frames(1, ttrpc.response(number, b"to %d" % number)))
        assert (await one, await two) == (b"to 1", b"to 3")


async def test_a_refusal_leaves_the_link_open() -> None:
    async with linked() as (link, other):
        call = asyncio.create_task(link.call("A", b"", 5))
        number = (await other.received()).call
        await other.send(mux.frames(1, ttrpc.response(number, b"", 2, "no")))
        with pytest.raises(RefusedError, match="no"):
            await call
        assert link.open


async def test_an_answer_that_is_too_late_is_dropped() -> None:
    async with linked() as (link, other):
        with pytest.raises(TimeoutError):
            await link.call("A", b"", 0.01)
        number = (await other.received()).call
        await other.send(mux.frames(1, ttrpc.response(number, b"late")))
        await other.send(mux.frames(2, asked(1, "yes")))
        assert ttrpc.parsed_response((await other.received()).body).payload == b"x"
        assert link.open


@pytest.mark.parametrize(
    ("garbage", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "not ttrpc: a frame of"),
        (mux.frames(1, b"\xff" * 10), "not ttrpc: a message of"),
        (mux.frames(1, b"\0\0\0\2\0\0\0\1\2\0\xff\xff"), "not ttrpc: a response that cannot"),
        (mux.frames(1, b"\0\0\0\0\0\0\0\1\1\0"), "not ttrpc: a message of type 1"),
        (mux.frames(2, b"\0\0\0\2\0\0\0\1\1\0\xff\xff"), "not ttrpc: a request that cannot"),
    ],
)
async def test_garbage_ends_the_link_and_its_calls(garbage: bytes, reason: str) -> None:
    async with linked() as (link, other):
        call = asyncio.create_task(link.call("A", b"", 5))
        await other.received()
        await other.send(garbage)
        with pytest.raises(LostError, match=reason):
            await call
        with pytest.raises(LostError, match=reason):
            await link.call("B", b"", 5)


async def test_a_plugin_that_leaves_fails_its_calls() -> None:
    async with linked() as (link, other):
        call = asyncio.create_task(link.call("A", b"", 5))
        await other.received()
        other.close()
        with pytest.raises(LostError, match="closed the connection"):
            await call


async def test_a_plugin_that_reads_nothing_is_let_go() -> None:
    async with linked() as (link, _other):
        most = b"x" * ((4 << 20) - 200)
        while link.open:
            with contextlib.suppress(TimeoutError, LostError):
                await link.call("A", most, 0.01)
        assert link.reason == "the plugin did not read 16 MiB that it was sent"


async def test_calls_of_a_plugin_are_answered() -> None:
    async with linked() as (_, other):
        await other.send(mux.frames(2, asked(1, "yes") + asked(3, "no") + asked(5, "x", "Other")))
        answers = {}
        for _ in range(3):
            message = await other.received()
            answers[message.call] = ttrpc.parsed_response(message.body)
    assert answers[1].payload == b"x"
    assert (answers[3].status.code, answers[3].status.message) == (3, "not that")
    assert answers[5].status.code == ttrpc.Code.UNIMPLEMENTED


def asked(number: int, method: str, service: str = "nri.pkg.api.v1alpha1.Runtime") -> bytes:
    return ttrpc.request(number, service, method, b"x", timeout_s=1)
