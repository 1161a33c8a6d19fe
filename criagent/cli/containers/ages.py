# SPDX-License-Identifier: Apache-2.0
"""Points in time and durations: as a person reads them, and as one types them."""

from __future__ import annotations

import datetime as dt
import re

_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}


def age(created_ns: int, now_ns: int) -> str:
    """How long ago, in the largest unit of which there is one at least: "3h"."""
    seconds = max(now_ns - created_ns, 0) // 1_000_000_000
    for unit, length in _UNITS.items():
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return "0s"


def time_text(at_ns: int) -> str:
    """RFC 3339 in UTC, with milliseconds."""
    at = dt.datetime.fromtimestamp(at_ns / 1e9, dt.UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def since(text: str, now: dt.datetime) -> dt.datetime:
    """A duration before `now` ("90s", "1h30m") or a time of RFC 3339. Raises ValueError."""
    if re.fullmatch(r"(\d+[dhms])+", text):
        parts = re.findall(r"(\d+)([dhms])", text)
        try:
            return now - dt.timedelta(seconds=sum(int(n) * _UNITS[unit] for n, unit in parts))
        except OverflowError:
            raise ValueError(f"{text!r} is longer than time") from None
    at = parse_time(text)
    if at is None:
        raise ValueError(f"{text!r} is neither a duration such as 1h30m nor a time of RFC 3339")
    return at


def parse_time(text: str) -> dt.datetime | None:
    """A time of RFC 3339 with any number of digits after the point; None for anything else."""
    found = re.fullmatch(
        r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|z|[+-]\d\d:\d\d)", text, re.ASCII
    )
    if found is None:
        return None
    day, clock, fraction, zone = found.groups()
    offset = "+00:00" if zone in "Zz" else zone
    try:
        return dt.datetime.fromisoformat(f"{day}T{clock}.{(fraction or '0')[:6]:0<6}{offset}")
    except ValueError:
        return None
