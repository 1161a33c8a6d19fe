# SPDX-License-Identifier: Apache-2.0
"""Bandwidth limits of a pod from its annotations.

The annotations are those of Kubernetes' network plugins. Their values are quantities as defined by
k8s.io/apimachinery/pkg/api/resource, from 1k to 1P bits per second.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import ROUND_CEILING, Context, Decimal
from typing import Literal

from criagent.base.errors import InvalidRequestError

Direction = Literal["ingress", "egress"]
DIRECTIONS: tuple[Direction, ...] = ("ingress", "egress")

_QUANTITY = re.compile(
    r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:([KMGTPE]i|[numkMGTPE]?)|[eE]([+-]?[0-9]{1,10}))",
    re.ASCII,
)
_LONGEST = 128  # characters
_SUFFIXES = {
    "": Decimal(1),
    **{suffix: Decimal(1000) ** at for at, suffix in enumerate("num", -3)},
    **{suffix: Decimal(1000) ** at for at, suffix in enumerate("kMGTPE", 1)},
    **{f"{suffix}i": Decimal(1024) ** at for at, suffix in enumerate("KMGTPE", 1)},
}
_LEAST, _MOST = 1000, 10**15
_EXACT = Context(prec=2 * _LONGEST, Emax=10**6, Emin=-(10**6))


def limits(annotations: Mapping[str, str]) -> dict[Direction, int]:
    """Bits per second for each limited direction, rounded up.

    Raises InvalidRequestError naming the annotation.
    """
    found: dict[Direction, int] = {}
    for direction in DIRECTIONS:
        name = f"kubernetes.io/{direction}-bandwidth"
        if (text := annotations.get(name)) is not None:
            rate = _quantity(text)
            if rate is None:
                raise InvalidRequestError(
                    f"annotation {name}: {text[:80]!r} is not a quantity such as 10M"
                )
            if not _LEAST <= rate <= _MOST:
                raise InvalidRequestError(
                    f"annotation {name}: {text[:80]!r} is not between 1k and 1P bits per second"
                )
            found[direction] = int(rate)
    return found


def _quantity(text: str) -> Decimal | None:
    """The value, rounded up to a whole number; None if it is not a quantity."""
    matched = _QUANTITY.fullmatch(text) if len(text) <= _LONGEST else None
    if matched is None:
        return None
    number, suffix, exponent = matched.groups()
    value = Decimal(number)
    if exponent is None:
        value = _EXACT.multiply(value, _SUFFIXES[suffix])
    elif value:
        # Beyond the limits the exact exponent does not matter.
        value = value.scaleb(max(-1000, min(int(exponent), 1000)), _EXACT)
    return value.to_integral_value(ROUND_CEILING, _EXACT)
