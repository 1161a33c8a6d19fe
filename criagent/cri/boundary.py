# SPDX-License-Identifier: Apache-2.0
"""The edge of the daemon: statuses, access log, spans, timings and readiness of every call.

The only place that catches everything. A handler never ends without a status: grpc.aio sends none
for a CancelledError that the handler raises itself, and the client would hang. All log lines of a
call carry its trace id and the subject of its request; those of a failure are errors, or warnings
if the caller asked for something impossible.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc import StatusCode

from criagent.base import errors
from criagent.base.aio import STAGES
from criagent.base.text import bounded
from criagent.cri.statuses import status_of
from criagent.telemetry import logs
from criagent.telemetry.call_span import CallSpan
from criagent.telemetry.logs import CALL
from criagent.telemetry.telemetry import Telemetry

_QUIET = (
    *("List", "Status", "Version", "Stats", "ImageFsInfo", "Info", "Debug", "RuntimeConfig"),
    *("ExecSync", "Progress"),
)
_ALWAYS_SERVED = ("Version", "Debug")
_LAST_FAILED = 20
_FACT = 256  # characters of a request's subject
# The caller asked for something impossible, or left: the node itself is fine.
_CALLERS_OWN = frozenset(
    {
        StatusCode.CANCELLED,
        StatusCode.ABORTED,
        StatusCode.INVALID_ARGUMENT,
        StatusCode.NOT_FOUND,
        StatusCode.ALREADY_EXISTS,
        StatusCode.FAILED_PRECONDITION,
        StatusCode.UNIMPLEMENTED,
    }
)

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Method:
    """What all calls of a method have in common."""

    service: str
    name: str
    streams: bool
    quiet: bool  # a success is logged at level debug

    @classmethod
    def of(cls, path: str, *, streams: bool) -> _Method:
        """The method of a path such as "/package.Service/Name"."""
        service, _, name = path.strip("/").rpartition("/")
        return cls(service, name, streams, any(word in name for word in _QUIET))


@dataclass(frozen=True, slots=True)
class FailedCall:
    """A call that has failed, as an operator is shown it."""

    at: float
    rpc: str
    code: str
    subject: str
    text: str


class Boundary(grpc.aio.ServerInterceptor):
    """Wraps every handler.

    `ready` says whether calls other than Version are served; `about` returns the subject of a
    request: facts for log lines and spans.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        ready: Callable[[], bool],
        about: Callable[[Any], dict[str, str]] = lambda _: {},
    ) -> None:
        self._telemetry = telemetry
        self.call_span = telemetry.call_span
        self._ready = ready
        self.about = about
        self.failed: Counter[str] = Counter()  # calls by status
        self.last_failed: deque[FailedCall] = deque(maxlen=_LAST_FAILED)
        self._handlers: dict[str, Any] = {}
        self.calls: set[_Call] = set()  # in progress

    def in_flight(self) -> dict[str, float]:
        """The number of calls in progress, by method; callable from any thread."""
        counts: dict[str, float] = {}
        for call in list(self.calls):
            counts[call.method.name] = counts.get(call.method.name, 0) + 1
        return counts

    def oldest_s(self) -> float:
        """The age in seconds of the oldest call with a single answer that is still in progress; 0
        for none.
        """
        started = [call.started for call in list(self.calls) if not call.method.streams]
        return time.perf_counter() - min(started) if started else 0.0

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """Wrap the method's handler, once per method."""
        method = details.method
        if method not in self._handlers:
            handler = await continuation(details)
            self._handlers[method] = None if handler is None else self._wrapped(handler, method)
        return self._handlers[method]

    def _wrapped(self, handler: Any, method: str) -> Any:
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                self._answering(handler.unary_unary, method, handler.request_deserializer),
                None,
                _ready_made(handler.response_serializer),
            )
        if handler.stream_unary is not None:
            return grpc.stream_unary_rpc_method_handler(
                self._answering(handler.stream_unary, method, lambda requests: requests),
                handler.request_deserializer,
                _ready_made(handler.response_serializer),
            )
        return grpc.unary_stream_rpc_method_handler(
            self._streaming(handler.unary_stream, method, handler.request_deserializer),
            None,
            _ready_made(handler.response_serializer),
        )

    def _answering(
        self, call: Callable[..., Awaitable[Any]], path: str, decode: Callable[[Any], Any]
    ) -> Any:
        method = _Method.of(path, streams=False)

        async def answer(request: Any, context: Any) -> Any:
            async with _Call(self, method, context) as begun:
                return await call(begun.request(request, decode), context)

        return answer

    def _streaming(
        self, call: Callable[..., AsyncIterator[Any]], path: str, decode: Callable[[Any], Any]
    ) -> Any:
        method = _Method.of(path, streams=True)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            async with _Call(self, method, context) as begun:
                async for item in call(begun.request(request, decode), context):
                    yield item

        return stream

    def served(self, name: str) -> bool:
        """Whether calls of the method are answered now."""
        return name in _ALWAYS_SERVED or self._ready()

    def account(self, call: _Call) -> None:
        """Record a call that has ended: metrics, span, log, failures."""
        code, took_s = call.code, time.perf_counter() - call.started
        name, quiet = call.method.name, call.method.quiet
        self._telemetry.rpc(name, code.name, took_s)
        call.span.ended(code.value[0], call.text)
        if code is StatusCode.OK and quiet and not logs.writes("debug"):
            return
        facts: dict[str, object] = {"code": code.name, "ms": round(took_s * 1000, 2)}
        if code is StatusCode.OK:
            (log.debug if quiet else log.info)(CALL, **facts)
            return
        self.failed[code.name] += 1
        if code is not StatusCode.CANCELLED:
            self.last_failed.append(
                FailedCall(time.time(), name, code.name, call.subject, call.text)
            )
        # The time-out of an ExecSync belongs to the probe, and recovery logs lines of its own.
        probe = name == "ExecSync" and code is StatusCode.DEADLINE_EXCEEDED
        warns = code in _CALLERS_OWN or probe or not self._ready()
        (log.warning if warns else log.error)(CALL, **facts, error=call.text)


class _Call:
    """One call in progress, and the block in which its handler runs.

    A class, because generators would cost a List call more than its own work. What it binds for log
    lines is not unbound: gRPC runs each call in a task of its own.
    """

    __slots__ = (
        *("boundary", "method", "context", "started", "trace_id", "subject", "code", "text"),
        *("span", "_span_block"),
    )

    def __init__(self, boundary: Boundary, method: _Method, context: Any) -> None:
        self.boundary = boundary
        self.method = method
        self.context = context
        self.started = time.perf_counter()
        self.trace_id = self.subject = self.text = ""
        self.code = StatusCode.OK
        metadata = dict(context.invocation_metadata() or ())
        self._span_block = boundary.call_span(method.service, method.name, metadata)
        self.span = CallSpan("")  # until the block is entered

    async def __aenter__(self) -> _Call:
        self.boundary.calls.add(self)
        self.span = self._span_block.__enter__()
        self.trace_id = self.span.trace_id or f"{random.getrandbits(128):032x}"
        structlog.contextvars.bind_contextvars(rpc=self.method.name, trace_id=self.trace_id)
        if self.span.recording:
            STAGES.set(self.span.stages)
        return self

    def request(self, raw: Any, decode: Callable[[Any], Any]) -> Any:
        """The decoded request. Raises UnavailableError while the agent recovers."""
        if not self.boundary.served(self.method.name):
            raise errors.UnavailableError("the agent is recovering; try again")
        request = _decoded(raw, decode)
        found = self.boundary.about(request)
        if found:
            facts = {key: bounded(value, _FACT) for key, value in found.items() if value}
            self.subject = facts.get("pod", "") or facts.get("image", "")
            structlog.contextvars.bind_contextvars(**facts)
            self.span.about(facts)
        return request

    async def __aexit__(
        self, _: object, error: BaseException | None, _traceback: TracebackType | None
    ) -> bool:
        goes_on = True
        try:
            goes_on = error is not None and self._goes_on(error)
        finally:
            self.boundary.calls.discard(self)
            try:
                self.boundary.account(self)  # before the client sees the answer
            finally:
                self._span_block.__exit__(None, None, None)
        if not goes_on and self.code is not StatusCode.OK:
            await self.context.abort(self.code, self.text)
        return not goes_on

    def _goes_on(self, error: BaseException) -> bool:
        """Whether the exception leaves the block; otherwise it has become the call's status."""
        if isinstance(error, asyncio.CancelledError):
            return self._given_up()
        if isinstance(error, grpc.aio.AbortError) or not isinstance(error, Exception):
            return True
        status = status_of(error, self.method.name, self.trace_id)
        self.code, self.text = status.code, status.text
        if not status.expected:
            log.error("call_failed", exc_info=error)
        return False

    def _given_up(self) -> bool:
        """Whether the client left; otherwise work that the call had joined was cancelled."""
        task = asyncio.current_task()
        if task is not None and not task.cancelling():
            self.code = StatusCode.ABORTED
            self.text = "the work was cancelled because its pod or the agent was stopped; try again"
            return False
        late = self.context.time_remaining() == 0
        self.code = StatusCode.CANCELLED
        self.text = "the caller's deadline passed" if late else "the caller cancelled the call"
        return True


def _decoded(request: Any, decode: Callable[[Any], Any]) -> Any:
    """The decoded message; gRPC would answer a malformed one with a Python error and status
    UNKNOWN.
    """
    try:
        return decode(request)
    except DecodeError as error:
        raise errors.InvalidRequestError("malformed request: cannot decode the message") from error


def _ready_made(serializer: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """Lets a handler answer with bytes: long lists are serialized where they are built."""

    def serialize(answer: Any) -> bytes:
        return answer if isinstance(answer, bytes) else serializer(answer)

    return serialize
