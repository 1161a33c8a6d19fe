"""The edge of the daemon: statuses, access log, spans, timings and readiness of every call.

The only place that catches everything. An error of ours becomes its status with its text; anything
else becomes INTERNAL with a neutral text and a traceback in the log. A handler never ends without a
status: grpc.aio sends none for a CancelledError of its own making, and the client would hang.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc import StatusCode
from opentelemetry.propagate import extract
from opentelemetry.trace import SpanKind

from criagent import errors
from criagent.telemetry import Telemetry

_CODES: tuple[tuple[type[Exception], StatusCode], ...] = (
    (errors.InvalidRequestError, StatusCode.INVALID_ARGUMENT),
    (errors.NotFoundError, StatusCode.NOT_FOUND),
    (errors.AlreadyExistsError, StatusCode.ALREADY_EXISTS),
    (errors.WrongStateError, StatusCode.FAILED_PRECONDITION),
    (errors.UnsupportedError, StatusCode.UNIMPLEMENTED),
    (errors.UnavailableError, StatusCode.UNAVAILABLE),
    (errors.ExhaustedError, StatusCode.RESOURCE_EXHAUSTED),
    (errors.TimedOutError, StatusCode.DEADLINE_EXCEEDED),
    (errors.CorruptError, StatusCode.DATA_LOSS),
    (errors.RegistryDeniedError, StatusCode.PERMISSION_DENIED),
)
_QUIET = ("List", "Status", "Version", "Stats", "ImageFsInfo", "Info", "RuntimeConfig", "ExecSync")
_ALWAYS_SERVED = ("Version",)

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def status_of(error: Exception) -> tuple[StatusCode, str]:
    """The status and text that a caller gets for `error`."""
    if isinstance(error, errors.RegistryError) and not isinstance(
        error, errors.RegistryDeniedError
    ):
        # The kubelet reads this prefix, and only of an Unknown status (kubelet image manager).
        return StatusCode.UNKNOWN, f"RegistryUnavailable: {error}"
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code, str(error)
    if isinstance(error, errors.AgentError):
        return StatusCode.INTERNAL, str(error)
    return StatusCode.INTERNAL, "internal error; see the agent's log"


class Boundary(grpc.aio.ServerInterceptor):
    """Wraps every handler; `ready` says whether calls other than Version are served."""

    def __init__(self, telemetry: Telemetry, ready: Callable[[], bool]) -> None:
        self._telemetry = telemetry
        self._ready = ready
        self._handlers: dict[str, Any] = {}
        self._calls: dict[object, tuple[str, bool, float]] = {}

    def in_flight(self) -> dict[str, float]:
        """How many calls are being served, by method; may be asked from any thread."""
        counts: dict[str, float] = {}
        for name, _, _ in list(self._calls.values()):
            counts[name] = counts.get(name, 0) + 1
        return counts

    def oldest_s(self) -> float:
        """For how long the oldest call that has one answer has waited for it; 0 for none."""
        started = [at for _, streams, at in list(self._calls.values()) if not streams]
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
        name = method.rpartition("/")[2]
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                self._answering(handler.unary_unary, name, handler.request_deserializer),
                None,
                _ready_made(handler.response_serializer),
            )
        if handler.stream_unary is not None:
            return grpc.stream_unary_rpc_method_handler(
                self._answering(handler.stream_unary, name, lambda requests: requests),
                handler.request_deserializer,
                _ready_made(handler.response_serializer),
            )
        return grpc.unary_stream_rpc_method_handler(
            self._streaming(handler.unary_stream, name, handler.request_deserializer),
            None,
            _ready_made(handler.response_serializer),
        )

    def _answering(
        self, call: Callable[..., Awaitable[Any]], name: str, decode: Callable[[Any], Any]
    ) -> Any:
        async def answer(request: Any, context: Any) -> Any:
            async with self._call(name, context, streams=False):
                return await call(_decoded(request, decode), context)

        return answer

    def _streaming(
        self, call: Callable[..., AsyncIterator[Any]], name: str, decode: Callable[[Any], Any]
    ) -> Any:
        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            async with self._call(name, context, streams=True):
                async for item in call(_decoded(request, decode), context):
                    yield item

        return stream

    @asynccontextmanager
    async def _call(self, name: str, context: Any, *, streams: bool) -> AsyncIterator[None]:
        started = time.perf_counter()
        self._calls[context] = (name, streams, started)
        code, text = StatusCode.OK, ""
        carrier = dict(context.invocation_metadata() or ())
        tracer = self._telemetry.tracer
        with (
            structlog.contextvars.bound_contextvars(rpc=name),
            tracer.start_as_current_span(name, context=extract(carrier), kind=SpanKind.SERVER),
        ):
            try:
                if not self._ready() and name not in _ALWAYS_SERVED:
                    raise errors.UnavailableError("the agent is recovering; try again")
                yield
            except grpc.aio.AbortError:
                raise
            except asyncio.CancelledError:
                code = StatusCode.CANCELLED
                task = asyncio.current_task()
                if task is not None and not task.cancelling():
                    code, text = StatusCode.ABORTED, "the work was cancelled; try again"
                    await context.abort(code, text)
                raise
            except Exception as error:
                code, text = status_of(error)
                if code is StatusCode.INTERNAL and not isinstance(error, errors.AgentError):
                    log.exception("call_failed")
                await context.abort(code, text)
            finally:
                del self._calls[context]
                self._account(name, code, text, time.perf_counter() - started)

    def _account(self, name: str, code: StatusCode, text: str, took_s: float) -> None:
        self._telemetry.rpc(name, code.name, took_s)
        quiet = any(word in name for word in _QUIET) and code is StatusCode.OK
        facts: dict[str, object] = {"code": code.name, "ms": round(took_s * 1000, 2)}
        if text:
            facts["error"] = text
        (log.debug if quiet else log.info)("call", **facts)


def _decoded(request: Any, decode: Callable[[Any], Any]) -> Any:
    """The message; gRPC itself would tell a broken one by a Python error of status UNKNOWN."""
    try:
        return decode(request)
    except DecodeError as error:
        raise errors.InvalidRequestError("the request is no message of its type") from error


def _ready_made(serializer: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """Lets a handler answer with bytes: long lists are serialized where they are made."""

    def serialize(answer: Any) -> bytes:
        return answer if isinstance(answer, bytes) else serializer(answer)

    return serialize
