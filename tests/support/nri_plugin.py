# SPDX-License-Identifier: Apache-2.0
"""An NRI plugin in the test's own process, which answers and misbehaves as the test wants.

The bytes that it shares with the agent's codec are checked against those of a plugin in Go
(tests/unit/test_nri_wire.py).
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from criagent._proto import nri_pb2
from criagent.nri.wire import mux, ttrpc
from criagent.nri.wire.link import PLUGIN, RUNTIME
from tests.support.waiting import until

SOCKET = Path("/run/nri/nri.sock")
HANG, DIE, GARBAGE = "hang", "die", "garbage"

# Gives the answer to a request, None for an empty one, or raises RefusalError; or a word of those.
Handler = Callable[[Any], Any] | str

_SPECIAL = {"Configure", "Synchronize", "Shutdown", "StateChange"}
_METHODS = {
    name.removesuffix("Request"): message
    for name, message in vars(nri_pb2).items()
    if name.endswith("Request")
}


class RefusalError(Exception):
    """What a plugin says no with."""


class NriPlugin:
    """A context manager: registered in the block, gone after it."""

    def __init__(
        self,
        handlers: Mapping[str, Handler] | None = None,
        *,
        name: str = "test",
        index: str = "10",
        events: int | None = None,
        policy: nri_pb2.FailurePolicy | None = None,
        path: Path = SOCKET,
    ) -> None:
        self.handlers = dict(handlers or {})
        self.calls: list[tuple[str, Any]] = []
        self.ended = threading.Event()
        self._events = events
        self._policy = policy or nri_pb2.FailurePolicy()
        self._identity = nri_pb2.RegisterPluginRequest(
            plugin_name=name, plugin_idx=index, NRI_version="v0.12.5"
        )
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._next = 1
        self._answers: dict[int, ttrpc.Message] = {}
        self._answered = threading.Condition()
        self._thread = threading.Thread(target=self._receive, daemon=True)

    def __enter__(self) -> NriPlugin:
        self._thread.start()
        answer = self.call("RegisterPlugin", self._identity)
        assert not answer.status.code, answer.status
        until(lambda: "Synchronize" in self.methods, "the plugin's synchronization")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def methods(self) -> list[str]:
        """The names of the calls that came."""
        return [method for method, _ in self.calls]

    def of(self, object_id: str) -> list[str]:
        """The names of the calls about a container, or about a pod as such."""
        return [
            method
            for method, request in self.calls
            if method not in _SPECIAL
            and (getattr(request, "container", None) or request.pod).id == object_id
        ]

    def request(self, method: str) -> Any:
        """The last request of a method."""
        return [request for name, request in self.calls if name == method][-1]

    def call(self, method: str, request: Any) -> Any:
        """The agent's response to a call of the plugin."""
        number, self._next = self._next, self._next + 2
        self._send(
            2, ttrpc.request(number, RUNTIME, method, request.SerializeToString(), timeout_s=60)
        )
        with self._answered:
            assert self._answered.wait_for(lambda: number in self._answers, 60), method
            return ttrpc.parsed_response(self._answers.pop(number).body)

    def close(self) -> None:
        """Leave without a word."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _send(self, stream: int, message: bytes) -> None:
        self._socket.sendall(mux.frames(stream, message))

    def _receive(self) -> None:
        demultiplexer = mux.Demultiplexer()
        readers = {1: ttrpc.Reader(), 2: ttrpc.Reader()}
        with contextlib.suppress(OSError):
            while data := self._socket.recv(1 << 16):
                for stream, payload in demultiplexer.feed(data):
                    for message in readers[stream].feed(payload):
                        self._received(stream, message)
        self.ended.set()

    def _received(self, stream: int, message: ttrpc.Message) -> None:
        if stream == mux.RUNTIME_SERVICE:
            with self._answered:
                self._answers[message.call] = message
                self._answered.notify_all()
            return
        asked = ttrpc.parsed_request(message.body)
        assert asked.service == PLUGIN
        threading.Thread(
            target=self._answer, args=(message.call, asked.method, asked.payload), daemon=True
        ).start()

    def _answer(self, number: int, method: str, payload: bytes) -> None:
        kind = _METHODS.get(method, nri_pb2.Empty)
        if method == "StateChange":
            kind = nri_pb2.StateChangeEvent
        request = kind.FromString(payload)
        self.calls.append((method, request))
        handler = self.handlers.get(method, self._default(method))
        if handler == HANG:
            return
        if handler == DIE:
            self._socket.shutdown(socket.SHUT_RDWR)
            return
        if handler == GARBAGE:
            self._socket.sendall(b"\0\0\0\1\xff\xff\xff\xffgarbage")
            return
        assert callable(handler)
        try:
            made = handler(request)
            answer = ttrpc.response(number, made.SerializeToString() if made is not None else b"")
        except RefusalError as refusal:
            answer = ttrpc.response(number, b"", 2, str(refusal))
        except NotImplementedError:
            answer = ttrpc.response(number, b"", 12, f"method {method}")
        with contextlib.suppress(OSError):
            self._send(1, answer)

    def _default(self, method: str) -> Handler:
        if method == "Configure":
            return lambda _: nri_pb2.ConfigureResponse(
                events=self._events or 0, failure_policy=self._policy
            )
        if method == "Synchronize":
            return lambda request: nri_pb2.SynchronizeResponse(more=request.more)
        return lambda _: None


def events(*wanted: int) -> int:
    """The mask of a subscription."""
    return sum(1 << (event - 1) for event in wanted)
