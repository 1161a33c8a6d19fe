"""The error tree: one class per decision that some caller takes.

The boundary (`cri/boundary.py`) maps classes to gRPC statuses; no other room knows a status code.
Texts are lower case, name the object and the cause, and say the cure where there is one.
"""

from __future__ import annotations


class AgentError(Exception):
    """Anything the agent refuses or fails to do; INTERNAL unless a subclass says otherwise."""


class InvalidRequestError(AgentError):
    """The request can never succeed as it is: INVALID_ARGUMENT."""


class NotFoundError(AgentError):
    """The named object does not exist: NOT_FOUND."""


class AlreadyExistsError(AgentError):
    """The name is taken by an object of another shape: ALREADY_EXISTS."""


class NameReservedError(AlreadyExistsError):
    """Another attempt still owns the name; the text tells its stage."""


class WrongStateError(AgentError):
    """The object is not in a state that allows the call: FAILED_PRECONDITION."""


class UnsupportedError(AgentError):
    """This build, kernel or node cannot do it: UNIMPLEMENTED."""


class UnavailableError(AgentError):
    """Not recovered yet, or shutting down; the caller should come again: UNAVAILABLE."""


class ExhaustedError(AgentError):
    """A limited resource (addresses, disk, tokens) is used up: RESOURCE_EXHAUSTED."""


class TimedOutError(AgentError):
    """Work that carries its own time limit ran out of it: DEADLINE_EXCEEDED."""


class NotPermittedError(AgentError):
    """The kernel or a security module forbids the agent to do it: PERMISSION_DENIED."""


class CorruptError(AgentError):
    """Content does not match its digest or size: DATA_LOSS."""


class RegistryError(AgentError):
    """A registry failed or could not be reached: UNKNOWN with the prefix that the kubelet reads.

    `url` is redacted (no credentials, no query); `codes` are the registry's own error codes.
    `transient` says that the same request may succeed later, `retry_after_s` when the server wants
    it again.
    """

    def __init__(
        self,
        text: str,
        *,
        method: str = "",
        url: str = "",
        status: int = 0,
        codes: tuple[str, ...] = (),
        transient: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(text)
        self.method = method
        self.url = url
        self.status = status
        self.codes = codes
        self.transient = transient
        self.retry_after_s = retry_after_s


class RegistryDeniedError(RegistryError):
    """The registry refused the credentials, or wants some: PERMISSION_DENIED."""


class RegistryUnreachableError(RegistryError):
    """No connection to a host came about: UNKNOWN, as RegistryError."""
