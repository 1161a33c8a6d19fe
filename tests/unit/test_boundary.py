# SPDX-License-Identifier: Apache-2.0
"""The boundary on the wire: a real gRPC server, what a client and the log get for each error."""

from __future__ import annotations

import asyncio
import errno
import os
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
import structlog
from grpc import StatusCode
from structlog.testing import capture_logs

from criagent._proto import api_pb2 as api
from criagent._proto import api_pb2_grpc
from criagent.base import errors
from criagent.base.aio import Owner, Owners
from criagent.base.os_errors import about
from criagent.cri.boundary import Boundary
from criagent.cri.statuses import MESSAGE_LIMIT
from criagent.telemetry.telemetry import Telemetry

Act = Callable[[], Any]
SECRET = "s3cret"
POD = {"pod": "ns/web", "pod_uid": "u1", "sandbox_id": "s1"}


class Service(api_pb2_grpc.RuntimeServiceServicer):
    """Does what the test says."""

    def __init__(self) -> None:
        self.act: Act = lambda: None
        self.entered = asyncio.Event()

    async def RunPodSandbox(  # noqa: N802 - the servicer's name
        self, request: Any, context: Any
    ) -> api.RunPodSandboxResponse:
        self.entered.set()
        found = self.act()
        if asyncio.iscoroutine(found):
            await found
        return api.RunPodSandboxResponse(pod_sandbox_id="s1")

    ExecSync = StopContainer = ContainerStatus = RunPodSandbox

    async def GetContainerEvents(  # noqa: N802 - as above
        self, request: Any, context: Any
    ) -> AsyncIterator[api.ContainerEventResponse]:
        yield api.ContainerEventResponse(container_id="c1")
        self.act()


class Logged:
    """A processor of the log that says when the first line comes."""

    def __init__(self) -> None:
        self.line = asyncio.Event()

    def __call__(self, _logger: object, _method: str, event: Any) -> Any:
        self.line.set()
        return event


class Edge:
    """A served boundary, its service, and a client."""

    def __init__(self, socket: Path) -> None:
        self.ready = True
        self.service = Service()
        self.telemetry = Telemetry()
        self.boundary = Boundary(self.telemetry, lambda: self.ready, lambda _: dict(POD))
        self.server = grpc.aio.server(interceptors=[self.boundary])
        api_pb2_grpc.add_RuntimeServiceServicer_to_server(self.service, self.server)
        self.server.add_insecure_port(f"unix:{socket}")
        self.channel = grpc.aio.insecure_channel(f"unix:{socket}")
        self.stub = api_pb2_grpc.RuntimeServiceStub(self.channel)

    async def fails(self, act: Act, method: str = "RunPodSandbox") -> tuple[StatusCode, str, Any]:
        """Status and text of a call that does `act`, and the line of the log at its end."""
        self.service.act = act
        request = {
            "RunPodSandbox": api.RunPodSandboxRequest,
            "ExecSync": api.ExecSyncRequest,
            "StopContainer": api.StopContainerRequest,
        }[method]()
        with capture_logs() as lines, pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(self.stub, method)(request, timeout=30)
        (line,) = [line for line in lines if line["event"] == "call"]
        return caught.value.code(), caught.value.details() or "", line


@pytest_asyncio.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Edge]:
    made = Edge(tmp_path / "edge.sock")
    await made.server.start()
    yield made
    await made.channel.close()
    await made.server.stop(None)
    made.telemetry.close()


def raising(error: BaseException) -> Act:
    def act() -> None:
        raise error

    return act


OURS: list[tuple[type[errors.AgentError], StatusCode, str]] = [
    (errors.AgentError, StatusCode.INTERNAL, "error"),
    (errors.InvalidRequestError, StatusCode.INVALID_ARGUMENT, "warning"),
    (errors.NotFoundError, StatusCode.NOT_FOUND, "warning"),
    (errors.AlreadyExistsError, StatusCode.ALREADY_EXISTS, "warning"),
    (errors.NameReservedError, StatusCode.ALREADY_EXISTS, "warning"),
    (errors.WrongStateError, StatusCode.FAILED_PRECONDITION, "warning"),
    (errors.UnsupportedError, StatusCode.UNIMPLEMENTED, "warning"),
    (errors.UnavailableError, StatusCode.UNAVAILABLE, "error"),
    (errors.ExhaustedError, StatusCode.RESOURCE_EXHAUSTED, "error"),
    (errors.TimedOutError, StatusCode.DEADLINE_EXCEEDED, "error"),
    (errors.NotPermittedError, StatusCode.PERMISSION_DENIED, "error"),
    (errors.CorruptError, StatusCode.DATA_LOSS, "error"),
    (errors.RegistryDeniedError, StatusCode.PERMISSION_DENIED, "error"),
]


def test_every_kind_of_error_has_a_case_here() -> None:
    def below(kind: type) -> set[type]:
        return {kind}.union(*(below(one) for one in kind.__subclasses__()))  # type: ignore[var-annotated]

    # those of rooms have the status of the class above them
    found = {kind for kind in below(errors.AgentError) if kind.__module__ == errors.__name__}
    prefixed = {  # below
        errors.RegistryError,
        errors.RegistryUnreachableError,
        errors.RegistrySilentError,
        errors.SignatureRejectedError,
    }
    assert found - prefixed == {kind for kind, _, _ in OURS}


@pytest.mark.parametrize(("kind", "code", "level"), OURS)
async def test_an_error_of_ours_has_its_status_its_text_and_its_level(
    edge: Edge, kind: type[errors.AgentError], code: StatusCode, level: str
) -> None:
    found, text, line = await edge.fails(raising(kind("object: cause; cure")))
    assert (found, text) == (code, "object: cause; cure")
    assert line["log_level"] == level
    assert (line["code"], line["error"]) == (code.name, text)
    assert edge.boundary.failed == {code.name: 1}


async def test_a_refused_signature_has_the_prefix_that_the_kubelet_reads(edge: Edge) -> None:
    found, text, _ = await edge.fails(raising(errors.SignatureRejectedError("a: reject")))
    assert (found, text) == (StatusCode.UNKNOWN, "SignatureValidationFailed: a: reject")


@pytest.mark.parametrize(
    "kind", [errors.RegistryError, errors.RegistryUnreachableError, errors.RegistrySilentError]
)
async def test_a_registry_that_is_unavailable_has_the_prefix_that_the_kubelet_reads(
    edge: Edge, kind: type[errors.RegistryError]
) -> None:
    found, text, _ = await edge.fails(raising(kind("no route")))
    assert (found, text) == (StatusCode.UNKNOWN, "RegistryUnavailable: no route")


KERNEL: list[tuple[int, StatusCode, str]] = [
    (errno.ENOSPC, StatusCode.RESOURCE_EXHAUSTED, "free space"),
    (errno.EDQUOT, StatusCode.RESOURCE_EXHAUSTED, "quota"),
    (errno.EMFILE, StatusCode.RESOURCE_EXHAUSTED, "LimitNOFILE"),
    (errno.ENFILE, StatusCode.RESOURCE_EXHAUSTED, "fs.file-max"),
    (errno.ENOMEM, StatusCode.RESOURCE_EXHAUSTED, "memory"),
    (errno.ENOBUFS, StatusCode.RESOURCE_EXHAUSTED, "memory"),
    (errno.EAGAIN, StatusCode.RESOURCE_EXHAUSTED, "TasksMax"),
    (errno.EROFS, StatusCode.UNAVAILABLE, "read-only"),
    (errno.EIO, StatusCode.UNAVAILABLE, "dmesg"),
    (errno.EUCLEAN, StatusCode.UNAVAILABLE, "damaged"),
    (errno.EREMOTEIO, StatusCode.UNAVAILABLE, "dmesg"),
    (errno.ESTALE, StatusCode.UNAVAILABLE, "mount it again"),
    (errno.ENOTCONN, StatusCode.UNAVAILABLE, "mount it again"),
    (errno.EHOSTDOWN, StatusCode.UNAVAILABLE, "mount it again"),
    (errno.EACCES, StatusCode.PERMISSION_DENIED, "criagent doctor"),
    (errno.EPERM, StatusCode.PERMISSION_DENIED, "security module"),
    (errno.ENODEV, StatusCode.FAILED_PRECONDITION, "modprobe"),
    (errno.EOPNOTSUPP, StatusCode.FAILED_PRECONDITION, "veth"),
    (errno.EPROTONOSUPPORT, StatusCode.FAILED_PRECONDITION, "nf_tables"),
    (errno.EAFNOSUPPORT, StatusCode.FAILED_PRECONDITION, "modprobe"),
    (errno.ENOSYS, StatusCode.UNIMPLEMENTED, "too old"),
    (errno.ETIMEDOUT, StatusCode.DEADLINE_EXCEEDED, "try again"),
    # A missing file of the node must not read as a missing container, and what the kernel finds
    # invalid is not the caller's fault.
    (errno.ENOENT, StatusCode.INTERNAL, ""),
    (errno.EINVAL, StatusCode.INTERNAL, ""),
    (errno.EEXIST, StatusCode.INTERNAL, ""),
    (errno.EBUSY, StatusCode.INTERNAL, ""),
]


@pytest.mark.parametrize(("number", "code", "cure"), KERNEL)
async def test_an_error_of_the_kernel_comes_with_cause_object_and_cure(
    edge: Edge, number: int, code: StatusCode, cure: str
) -> None:
    cause = f"mount: {os.strerror(number)}"
    found, text, line = await edge.fails(raising(OSError(number, cause, "/a", None, "/b")))
    assert found is code
    assert text.startswith(f"{cause}: /a -> /b")
    assert cure in text
    assert "Errno" not in text
    assert line["error"] == text


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (OSError(errno.ENOSPC, "inotify_add_watch: full", "/x"), "RESOURCE_EXHAUSTED", "watches"),
        (OSError(errno.EMFILE, "inotify_init1: many"), "RESOURCE_EXHAUSTED", "user_instances"),
        (OSError(errno.ENOSPC, "move_mount: full", "/x"), "RESOURCE_EXHAUSTED", "fs.mount-max"),
        (OSError(errno.ENOSPC, "unshare: full"), "RESOURCE_EXHAUSTED", "user.max_*_namespaces"),
        (OSError(errno.ENODEV, "fsopen: none", "overlay"), "FAILED_PRECONDITION", "overlay"),
        (OSError(errno.EOPNOTSUPP, "netlink: no", "veth v1"), "FAILED_PRECONDITION", ": veth v1;"),
        (OSError("port 80 cannot be reached"), "INTERNAL", "port 80 cannot be reached"),
        (OSError(errno.EIO, "read", b"/\xff"), "UNAVAILABLE", "/\\udcff"),
        (OSError(errno.EIO, "read", 7), "UNAVAILABLE", "read: 7"),
        (TimeoutError("the plug-in hangs"), "DEADLINE_EXCEEDED", "the plug-in hangs"),
        (MemoryError(), "RESOURCE_EXHAUSTED", "MemoryMax"),
        (RuntimeError("can't start new thread"), "RESOURCE_EXHAUSTED", "TasksMax"),
        (
            ExceptionGroup("layers", [KeyError(SECRET), errors.ExhaustedError("disk full")]),
            "RESOURCE_EXHAUSTED",
            "disk full",
        ),
    ],
)
async def test_other_errors_whose_cause_is_known(
    edge: Edge, error: Exception, code: str, part: str
) -> None:
    found, text, _ = await edge.fails(raising(error))
    assert found.name == code
    assert part in text
    assert SECRET not in text


async def test_a_write_that_fails_names_its_file_all_the_same(edge: Edge) -> None:
    def write() -> None:
        with about("/run/x"), open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")

    found, text, _ = await edge.fails(write)
    assert found is StatusCode.RESOURCE_EXHAUSTED
    assert text.startswith("No space left on device: /run/x; ")


@pytest.mark.parametrize("suppressed", [False, True])
@pytest.mark.parametrize(
    ("kind", "number", "code"),
    [
        (errors.InvalidRequestError, errno.EMFILE, StatusCode.RESOURCE_EXHAUSTED),
        (errors.InvalidRequestError, errno.EIO, StatusCode.UNAVAILABLE),
        (errors.AgentError, errno.ENOSPC, StatusCode.RESOURCE_EXHAUSTED),
        # What the caller did ask for wrongly, and what has a class of its own, stays.
        (errors.InvalidRequestError, errno.ENOENT, StatusCode.INVALID_ARGUMENT),
        (errors.InvalidRequestError, errno.EACCES, StatusCode.INVALID_ARGUMENT),
        (errors.InvalidRequestError, errno.EINVAL, StatusCode.INVALID_ARGUMENT),
        (errors.NotFoundError, errno.EIO, StatusCode.NOT_FOUND),
    ],
)
async def test_a_request_is_not_blamed_for_a_node_that_ran_out_of_something(
    edge: Edge, kind: type[errors.AgentError], number: int, code: StatusCode, *, suppressed: bool
) -> None:
    def act() -> None:
        try:
            raise OSError(number, os.strerror(number), "/profile")
        except OSError as error:
            raise kind("seccomp profile: x") from (None if suppressed else error)

    found, text, _ = await edge.fails(act)
    assert found is code
    assert text.startswith("seccomp profile: x")


@pytest.mark.parametrize(
    "error",
    [
        KeyError(SECRET),
        RuntimeError(SECRET),
        ValueError(SECRET),
        UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, SECRET),
        ssl.SSLError(1, SECRET),  # an OSError whose number is not the kernel's
        TimeoutError(),
        ExceptionGroup(SECRET, [KeyError(SECRET)]),
        AssertionError(SECRET),
        StopAsyncIteration(SECRET),
    ],
)
async def test_an_unexpected_error_says_where_to_look_and_keeps_its_text_in_the_log(
    edge: Edge, error: Exception
) -> None:
    edge.service.act = raising(error)
    logged = capture_logs(processors=[structlog.contextvars.merge_contextvars])
    with logged as lines, pytest.raises(grpc.aio.AioRpcError) as caught:
        await edge.stub.RunPodSandbox(api.RunPodSandboxRequest())
    text = caught.value.details() or ""
    assert caught.value.code() is StatusCode.INTERNAL
    assert "internal error in RunPodSandbox" in text
    assert SECRET not in text
    traced, call = lines
    assert (traced["event"], traced["log_level"]) == ("call_failed", "error")
    assert traced["exc_info"] is error or isinstance(traced["exc_info"], RuntimeError)
    assert (call["event"], call["log_level"]) == ("call", "error")
    for line in lines:
        assert line["trace_id"] == text.rpartition(" ")[2]
        assert line["rpc"] == "RunPodSandbox"
        assert line.items() >= POD.items()


async def test_the_stage_of_the_work_is_in_the_text(edge: Edge) -> None:
    owners: Owners[str, None] = Owners(limit_s=60)

    async def work(owner: Owner[str, None]) -> None:
        owner.stage = "pod files"
        raise OSError(errno.ENOSPC, "No space left on device", "/run/x")

    _, text, _ = await edge.fails(lambda: owners.join(owners.start("k", None, work)))
    assert text.startswith("No space left on device: /run/x; free space")
    assert text.endswith("(stage: pod files)")


@pytest.mark.parametrize(
    "text",
    ["x" * 5_000_000, "é" * 9000, "\ud800" * 9000, "%" * 9000, "\x1b[2J\n" * 9000, "🐧" * 9000],
)
async def test_a_text_of_any_size_and_kind_reaches_the_client_cut(edge: Edge, text: str) -> None:
    whole = f"user: {text}; give it by number"
    found, seen, line = await edge.fails(raising(errors.InvalidRequestError(whole)))
    assert found is StatusCode.INVALID_ARGUMENT
    assert seen.startswith("user: ")
    assert seen.endswith("; give it by number")
    assert f"({len(whole)} characters)" in seen
    assert seen.isprintable()
    assert len(seen.encode()) <= MESSAGE_LIMIT
    assert line["error"] == seen


async def test_control_characters_are_escaped_in_short_texts_too(edge: Edge) -> None:
    _, seen, _ = await edge.fails(raising(errors.InvalidRequestError("a\n\x1b[31mb\u202ec\ud800")))
    assert seen == "a\\n\\x1b[31mb\\u202ec\\ud800"


# Calls that are given up


async def test_a_call_that_its_caller_gives_up_has_a_text(edge: Edge) -> None:
    edge.service.act = lambda: asyncio.Event().wait()
    logged = Logged()
    with capture_logs(processors=[logged]) as lines:
        call = edge.stub.RunPodSandbox(api.RunPodSandboxRequest())
        await edge.service.entered.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await logged.line.wait()
        await asyncio.sleep(0)
    (line,) = lines
    assert (line["code"], line["log_level"]) == ("CANCELLED", "warning")
    assert line["error"] == "the caller cancelled the call"


async def test_a_deadline_that_passes_has_a_text_of_its_own(edge: Edge) -> None:
    edge.service.act = lambda: asyncio.Event().wait()
    logged = Logged()
    with capture_logs(processors=[logged]) as lines:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await edge.stub.RunPodSandbox(api.RunPodSandboxRequest(), timeout=0.05)
        await logged.line.wait()
        await asyncio.sleep(0)
    assert caught.value.code() is StatusCode.DEADLINE_EXCEEDED
    assert lines[0]["error"] == "the caller's deadline passed"


async def test_work_that_is_cancelled_under_its_caller_is_aborted_with_a_text(edge: Edge) -> None:
    owners: Owners[str, None] = Owners(limit_s=60)

    async def work(owner: Owner[str, None]) -> None:
        assert owner.task is not None
        owner.task.cancel()
        await asyncio.Event().wait()

    found, text, line = await edge.fails(lambda: owners.join(owners.start("k", None, work)))
    assert found is StatusCode.ABORTED
    assert "cancelled" in text
    assert line["log_level"] == "warning"


# What the log says


async def test_the_trace_of_the_caller_joins_the_lines_of_a_call_and_of_work_it_starts(
    edge: Edge,
) -> None:
    owners: Owners[str, None] = Owners(limit_s=60)
    log = structlog.get_logger("test")

    async def work(owner: Owner[str, None]) -> None:
        log.info("step", owner=owner.key)

    edge.service.act = lambda: owners.join(owners.start("k", None, work))
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        await edge.stub.RunPodSandbox(
            api.RunPodSandboxRequest(), metadata=[("traceparent", f"00-{trace}-{'1' * 16}-01")]
        )
        await edge.stub.RunPodSandbox(api.RunPodSandboxRequest())
    assert [line["event"] for line in lines] == ["step", "call"] * 2
    assert [line["trace_id"] for line in lines[:2]] == [trace] * 2
    assert lines[2]["trace_id"] == lines[3]["trace_id"] != trace
    for line in lines:
        assert line.items() >= {**POD, "rpc": "RunPodSandbox"}.items()


async def test_what_a_request_names_is_cut_and_printable(edge: Edge) -> None:
    edge.boundary.about = lambda _: {"image": "\x1b" + "x" * 100_000, "pod": ""}
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        await edge.stub.RunPodSandbox(api.RunPodSandboxRequest())
    (line,) = lines
    assert len(line["image"]) <= 256
    assert line["image"].startswith("\\x1bxxx")
    assert "pod" not in line


async def test_calls_before_recovery_are_unavailable_and_no_errors(edge: Edge) -> None:
    edge.ready = False
    found, text, line = await edge.fails(lambda: None)
    assert found is StatusCode.UNAVAILABLE
    assert "recovering" in text
    assert line["log_level"] == "warning"


async def test_the_time_out_of_a_probe_is_a_warning(edge: Edge) -> None:
    _, _, line = await edge.fails(raising(errors.TimedOutError("1 s")), "ExecSync")
    assert line["log_level"] == "warning"


async def test_a_broken_message_is_the_callers_fault(edge: Edge) -> None:
    call: Any = edge.channel.unary_unary("/runtime.v1.RuntimeService/RunPodSandbox")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\xff\xff\xff")
    assert caught.value.code() is StatusCode.INVALID_ARGUMENT
    assert "malformed request" in (caught.value.details() or "")


async def test_a_stream_that_fails_in_the_middle_gives_what_it_had_and_its_status(
    edge: Edge,
) -> None:
    edge.service.act = raising(OSError(errno.EIO, "read", "/x"))
    got = []

    async def read() -> None:
        async for event in edge.stub.GetContainerEvents(api.GetEventsRequest()):
            got.append(event.container_id)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read()
    assert got == ["c1"]
    assert caught.value.code() is StatusCode.UNAVAILABLE
    assert edge.boundary.in_flight() == {}


async def test_calls_under_way_are_counted_and_aged(edge: Edge) -> None:
    go = asyncio.Event()
    edge.service.act = go.wait
    call = asyncio.ensure_future(edge.stub.RunPodSandbox(api.RunPodSandboxRequest()))
    await edge.service.entered.wait()
    assert edge.boundary.in_flight() == {"RunPodSandbox": 1}
    assert edge.boundary.oldest_s() > 0
    go.set()
    await call
    assert edge.boundary.in_flight() == {}
    assert edge.boundary.oldest_s() == 0
