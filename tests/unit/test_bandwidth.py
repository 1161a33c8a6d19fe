# SPDX-License-Identifier: Apache-2.0
"""Bandwidth annotations: quantities of Kubernetes, within limits."""

from __future__ import annotations

import pytest

from criagent.base.errors import InvalidRequestError
from criagent.net.bandwidth import limits

INGRESS, EGRESS = "kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"


def test_without_annotations_there_is_no_limit() -> None:
    assert limits({"kubernetes.io/bandwidth": "lots"}) == {}


# What ParseQuantity of k8s.io/apimachinery v0.36 makes of them.
@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("1k", 1000),
        ("1000", 1000),
        ("+1k", 1000),
        ("0001k", 1000),
        ("10M", 10_000_000),
        ("1.5M", 1_500_000),
        (".5M", 500_000),
        ("5.M", 5_000_000),
        ("1Ki", 1024),
        ("1.5Ki", 1536),
        ("2Gi", 2 << 30),
        ("1e3", 1000),
        ("1E3", 1000),
        ("1.2345e+6", 1_234_500),
        ("1000000000e-6", 1000),
        ("5000000m", 5000),
        ("5000000001u", 5001),  # rounded up
        ("1000.000000001", 1001),
        ("2000000000000n", 2000),
        ("1P", 10**15),
        ("1000T", 10**15),
    ],
)
def test_a_quantity_is_a_rate(text: str, rate: int) -> None:
    assert limits({INGRESS: text, EGRESS: "1M"}) == {"ingress": rate, "egress": 1_000_000}


NO_QUANTITIES = (
    *("", "lots", "M", "1K", "1 k", " 1k", "1k\n", "1kb", "1kk", "1ki", "1.2.3", "0x10", "1e"),
    *("1e1.5", "1_000", "\u0661k", "inf", "nan", "--1", "1e99999999999", "1" * 100_000),
)
OUT_OF_REASON = (
    *("0", "-1k", "-0", "999", "1", "1n", "1e-9", "1e-999999999", "0e999999999"),
    *("1000000000000001", "1.1P", "1E", "1Pi", "1e16", "1e999999999", "9" * 100),
)


@pytest.mark.parametrize("text", NO_QUANTITIES)
def test_what_is_no_quantity_is_refused_by_the_annotation(text: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"{EGRESS}: .* is not a quantity") as caught:
        limits({EGRESS: text})
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("text", OUT_OF_REASON)
def test_what_is_out_of_reason_is_refused_by_the_annotation(text: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"{INGRESS}: .* is not between 1k and 1P"):
        limits({INGRESS: text})
