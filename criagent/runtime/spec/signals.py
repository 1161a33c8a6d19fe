# SPDX-License-Identifier: Apache-2.0
"""Stop signals: the CRI enum, an image's STOPSIGNAL text, and names of the kernel."""

from __future__ import annotations

import re
import signal

from criagent.base.errors import InvalidRequestError

_NAMED = (
    "ABRT ALRM BUS CHLD CLD CONT FPE HUP ILL INT IO IOT KILL PIPE POLL PROF PWR QUIT SEGV STKFLT "
    "STOP SYS TERM TRAP TSTP TTIN TTOU URG USR1 USR2 VTALRM WINCH XCPU XFSZ RTMIN"
).split()
_RT_MIN, _RT_MAX = 34, 64  # as the C library and container tools count them
_REAL_TIME = re.compile(r"RT(MIN\+|MAX-)([0-9]{1,2})")
# Enum Signal of CRI v1: 1.. in the order of the names, then RTMIN+1..15 and RTMAX-14..0.
_CRI = (
    "",
    *(f"SIG{name}" for name in _NAMED),
    *(f"SIGRTMIN+{n}" for n in range(1, 16)),
    *(f"SIGRTMAX-{n}" for n in range(14, 0, -1)),
    "SIGRTMAX",
)


def stop_signal(cri: int, image: str) -> str:
    """The effective stop signal: the request's, else the image's, else SIGTERM.

    Raises InvalidRequestError for a number that CRI does not define, or an image's text that is not
    a signal.
    """
    if cri:
        if not 0 < cri < len(_CRI):
            raise InvalidRequestError(f"stop_signal {cri} is not a signal of the CRI")
        return _CRI[cri]
    if not image:
        return "SIGTERM"
    image = image.strip()
    if image.isascii() and image.isdigit():
        number = int(image) if len(image) < 4 else 0
        return _name(number, image)
    name = image.upper().removeprefix("SIG")
    signal_number(f"SIG{name}")
    return f"SIG{name}"


def cri_signal(name: str) -> int:
    """The number that CRI v1 gives the signal of this name; 0 when it has none."""
    if name in _CRI:
        return _CRI.index(name)
    number = signal_number(name)
    return next((at for at, other in enumerate(_CRI) if at and signal_number(other) == number), 0)


def signal_number(name: str) -> int:
    """The number of "SIGTERM", "SIGRTMIN+3" and similar names. Raises InvalidRequestError."""
    bare = name.removeprefix("SIG")
    if bare == "RTMIN":
        return _RT_MIN
    if bare == "RTMAX":
        return _RT_MAX
    if match := _REAL_TIME.fullmatch(bare):
        number = _RT_MIN + int(match[2]) if match[1] == "MIN+" else _RT_MAX - int(match[2])
        if _RT_MIN <= number <= _RT_MAX:
            return number
    try:
        return int(signal.Signals[f"SIG{bare}"])
    except KeyError:
        raise InvalidRequestError(f"{name[:40]!r} is not a signal") from None


def _name(number: int, text: str) -> str:
    if _RT_MIN <= number <= _RT_MAX:
        return f"SIGRTMIN+{number - _RT_MIN}" if number > _RT_MIN else "SIGRTMIN"
    try:
        return signal.Signals(number).name
    except ValueError:
        raise InvalidRequestError(
            f"the image's stop signal {text[:40]!r} is not a signal"
        ) from None
