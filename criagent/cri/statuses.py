# SPDX-License-Identifier: Apache-2.0
"""The gRPC status of an error: object, cause and cure, within bounds.

Errors of this package and of the kernel become a status with their text. The text of any other
exception stays in the log, since it may contain anything; the status names the call and a reference
to find it.
"""

from __future__ import annotations

from dataclasses import dataclass

from grpc import StatusCode

from criagent.base import errors, memory, os_errors
from criagent.base.text import bounded, wire_size

# gRPC's C core may refuse metadata above 8 KiB, of which the message is the largest part; above
# 16 KiB it does, and the client gets no status at all.
MESSAGE_LIMIT = 4096

_NO_THREAD = (
    "the agent cannot start a thread: memory is short, or a limit on processes is reached; check "
    "MemoryMax and TasksMax of the criagent unit, kernel.pid_max and kernel.threads-max"
)
_CODES: tuple[tuple[type[Exception], StatusCode], ...] = (
    (errors.InvalidRequestError, StatusCode.INVALID_ARGUMENT),
    (errors.NotFoundError, StatusCode.NOT_FOUND),
    (errors.AlreadyExistsError, StatusCode.ALREADY_EXISTS),
    (errors.WrongStateError, StatusCode.FAILED_PRECONDITION),
    (errors.UnsupportedError, StatusCode.UNIMPLEMENTED),
    (errors.UnavailableError, StatusCode.UNAVAILABLE),
    (errors.ExhaustedError, StatusCode.RESOURCE_EXHAUSTED),
    (errors.TimedOutError, StatusCode.DEADLINE_EXCEEDED),
    (errors.NotPermittedError, StatusCode.PERMISSION_DENIED),
    (errors.CorruptError, StatusCode.DATA_LOSS),
    (errors.RegistryDeniedError, StatusCode.PERMISSION_DENIED),
    (errors.AgentError, StatusCode.INTERNAL),
)


@dataclass(frozen=True, slots=True)
class Status:
    """`text` is printable and short enough for any client; `expected` = raised as AgentError."""

    code: StatusCode
    text: str
    expected: bool = True


def status_of(error: BaseException, rpc: str, reference: str) -> Status:
    """The status for `error` of the call `rpc`; `reference` finds the call in the log."""
    known = _known(error)
    if known is None:
        text = f"internal error in {rpc}; search the agent's log for {reference}"
        return Status(StatusCode.INTERNAL, text, expected=False)
    text = str(known)
    if isinstance(known, errors.RegistryError) and not isinstance(
        known, errors.RegistryDeniedError
    ):
        # The kubelet reads such prefixes, and only of an Unknown status (kubelet image manager).
        return Status(StatusCode.UNKNOWN, _shown(f"RegistryUnavailable: {text}", error))
    if isinstance(known, errors.SignatureRejectedError):
        return Status(StatusCode.UNKNOWN, _shown(f"SignatureValidationFailed: {text}", error))
    code = next(code for kind, code in _CODES if isinstance(known, kind))
    return Status(code, _shown(text, error))


def _known(error: BaseException) -> errors.AgentError | None:
    """`error` as an AgentError, None when its text is not for callers."""
    if isinstance(error, errors.AgentError):
        return os_errors.blamed(error)
    if isinstance(error, OSError):
        return os_errors.translated(error)
    if memory.is_lack(error):
        return errors.ExhaustedError("the agent is out of memory; check MemoryMax of its unit")
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        return errors.ExhaustedError(_NO_THREAD)
    if isinstance(error, BaseExceptionGroup):  # of concurrent tasks: the first that has a cause
        return next((known for one in error.exceptions if (known := _known(one))), None)
    return None


def _shown(text: str, error: BaseException) -> str:
    """The text with the notes that `aio` adds on the way: the stage, an undo that failed."""
    if notes := getattr(error, "__notes__", None):
        text = f"{text} ({'; '.join(notes)})"
    return bounded(text, MESSAGE_LIMIT, wire_size)
