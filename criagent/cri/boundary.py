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
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc import StatusCode

from criagent.base import errors
from criagent.base.aio import STAGES
from criagent.base.text import bounded
from criagent.cri.statuses import status_of
from criagent.telemetry.call_span import CallSpan
from criagent.telemetry.logs import CALL
from criagent.telemetry.telemetry import Telemetry

_QUIET = tuple("List Status Version Stats ImageFsInfo Info Debug RuntimeConfig ExecSync".split())
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


@dataclass(slots=True)
class _Call:
    """One call in progress."""

    name: str
    streams: bool
    started: float = field(default_factory=time.perf_counter)
    trace_id: str = ""
    subject: str = ""
    code: StatusCode = StatusCode.OK
    text: str = ""


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
        self._ready = ready
        self._about = about
        self.failed: Counter[str] = Counter()  # calls by status
        self.last_failed: deque[FailedCall] = deque(maxlen=_LAST_FAILED)
        self._handlers: dict[str, Any] = {}
        self._calls: dict[object, _Call] = {}

    def in_flight(self) -> dict[str, float]:
        """The number of calls in progress, by method; callable from any thread."""
        counts: dict[str, float] = {}
        for call in list(self._calls.values()):
            counts[call.name] = counts.get(call.name, 0) + 1
        return counts

    def oldest_s(self) -> float:
        """The age in seconds of the oldest call with a single answer that is still in progress; 0
        for none.
        """
        started = [call.started for call in list(self._calls.values()) if not call.streams]
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
        self, call: Callable[..., Awaitable[Any]], method: str, decode: Callable[[Any], Any]
    ) -> Any:
        async def answer(request: Any, context: Any) -> Any:
            async with self._call(method, context, streams=False) as begin:
                return await call(begin(_decoded(request, decode)), context)

        return answer

    def _streaming(
        self, call: Callable[..., AsyncIterator[Any]], method: str, decode: Callable[[Any], Any]
    ) -> Any:
        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            async with self._call(method, context, streams=True) as begin:
                async for item in call(begin(_decoded(request, decode)), context):
                    yield item

        return stream

    @asynccontextmanager
    async def _call(
        self, method: str, context: Any, *, streams: bool
    ) -> AsyncIterator[Callable[[Any], Any]]:
        """The block of one call; the function that it yields takes the request once that is
        decoded.
        """
        service, _, name = method.strip("/").rpartition("/")
        call = self._calls[context] = _Call(name, streams)
        metadata = dict(context.invocation_metadata() or ())
        with self._telemetry.call_span(service, name, metadata) as span:
            call.trace_id = span.trace_id or f"{random.getrandbits(128):032x}"
            with structlog.contextvars.bound_contextvars(rpc=name, trace_id=call.trace_id):
                if span.recording:
                    STAGES.set(span.stages)
                bound: dict[str, str] = {}
                try:
                    if not self._ready() and name not in _ALWAYS_SERVED:
                        raise errors.UnavailableError("the agent is recovering; try again")
                    yield lambda request: self._begin(request, call, span, bound)
                except grpc.aio.AbortError:
                    raise
                except asyncio.CancelledError:
                    if self._given_up(call, context):
                        raise
                except Exception as error:  # noqa: BLE001 - the one boundary; see `_failed`
                    self._failed(call, error)
                finally:
                    del self._calls[context]
                    self._account(call, span)  # before the client sees the answer
                    structlog.contextvars.unbind_contextvars(*bound)
        if call.code is not StatusCode.OK:
            await context.abort(call.code, call.text)

    def _begin(self, request: Any, call: _Call, span: CallSpan, bound: dict[str, str]) -> Any:
        facts = {key: bounded(value, _FACT) for key, value in self._about(request).items() if value}
        bound |= facts
        call.subject = facts.get("pod", "") or facts.get("image", "")
        structlog.contextvars.bind_contextvars(**facts)
        span.about(facts)
        return request

    def _given_up(self, call: _Call, context: Any) -> bool:
        """Whether the client left; otherwise work that the call had joined was cancelled."""
        task = asyncio.current_task()
        if task is not None and not task.cancelling():
            call.code = StatusCode.ABORTED
            call.text = "the work was cancelled because its pod or the agent was stopped; try again"
            return False
        late = context.time_remaining() == 0
        call.code = StatusCode.CANCELLED
        call.text = "the caller's deadline passed" if late else "the caller cancelled the call"
        return True

    def _failed(self, call: _Call, error: Exception) -> None:
        status = status_of(error, call.name, call.trace_id)
        call.code, call.text = status.code, status.text
        if not status.expected:
            log.error("call_failed", exc_info=error)

    def _account(self, call: _Call, span: CallSpan) -> None:
        code, took_s = call.code, time.perf_counter() - call.started
        self._telemetry.rpc(call.name, code.name, took_s)
        span.ended(code.value[0], call.text)
        facts: dict[str, object] = {"code": code.name, "ms": round(took_s * 1000, 2)}
        if code is StatusCode.OK:
            quiet = any(word in call.name for word in _QUIET)
            (log.debug if quiet else log.info)(CALL, **facts)
            return
        self.failed[code.name] += 1
        if code is not StatusCode.CANCELLED:
            self.last_failed.append(
                FailedCall(time.time(), call.name, code.name, call.subject, call.text)
            )
        # The time-out of an ExecSync belongs to the probe, and recovery logs lines of its own.
        probe = call.name == "ExecSync" and code is StatusCode.DEADLINE_EXCEEDED
        warns = code in _CALLERS_OWN or probe or not self._ready()
        (log.warning if warns else log.error)(CALL, **facts, error=call.text)


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
