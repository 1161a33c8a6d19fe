"""Limits of a pod's traffic, as its annotations state them.

The annotations are those of Kubernetes' network plugins, their values quantities as of
k8s.io/apimachinery/pkg/api/resource, from 1k to 1P bits a second.
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
    """Bits a second for each direction that is limited, fractions rounded up.

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
                    f"annotation {name}: {text[:80]!r} is not within 1k and 1P bits a second"
                )
            found[direction] = int(rate)
    return found


def _quantity(text: str) -> Decimal | None:
    """The value, rounded up to a whole number; None for what is no quantity."""
    matched = _QUANTITY.fullmatch(text) if len(text) <= _LONGEST else None
    if matched is None:
        return None
    number, suffix, exponent = matched.groups()
    value = Decimal(number)
    if exponent is None:
        value = _EXACT.multiply(value, _SUFFIXES[suffix])
    elif value:
        # Far outside of the limits one exponent is as good as another.
        value = value.scaleb(max(-1000, min(int(exponent), 1000)), _EXACT)
    return value.to_integral_value(ROUND_CEILING, _EXACT)
