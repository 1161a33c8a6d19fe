# SPDX-License-Identifier: Apache-2.0
"""What a seccomp profile in OCI form answers to a call, read independently of the agent's code."""

from __future__ import annotations

import operator
from random import Random
from typing import Any

ORDER = (
    "SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_NOTIFY", "SCMP_ACT_ERRNO",
    "SCMP_ACT_TRAP", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL_PROCESS",
)  # fmt: skip
COMPARE = {
    "SCMP_CMP_EQ": operator.eq,
    "SCMP_CMP_NE": operator.ne,
    "SCMP_CMP_LT": operator.lt,
    "SCMP_CMP_LE": operator.le,
    "SCMP_CMP_GT": operator.gt,
    "SCMP_CMP_GE": operator.ge,
}
Args = tuple[int, ...]


def strictness(profile: dict[str, Any], call: str, args: Args) -> int:
    """The place in ORDER of the strictest action that the call may get."""
    found = [
        rank(entry["action"])
        for entry in profile.get("syscalls") or ()
        if call in entry["names"]
        and said(entry) != otherwise(profile)
        and holds(entry.get("args") or (), args)
    ]
    return max(found) if found else rank(profile["defaultAction"])


def said(entry: dict[str, Any]) -> tuple[int, int]:
    return rank(entry["action"]), entry.get("errnoRet") or 1


def otherwise(profile: dict[str, Any]) -> tuple[int, int]:
    return rank(profile["defaultAction"]), profile.get("defaultErrnoRet") or 1


def rank(action: str) -> int:
    return ORDER.index("SCMP_ACT_KILL_THREAD" if action == "SCMP_ACT_KILL" else action)


def holds(conditions: Any, args: Args) -> bool:
    """As runc and crun: several conditions on one argument are alternatives."""
    each = [compare(condition, args[condition["index"]]) for condition in conditions]
    indexes = [condition["index"] for condition in conditions]
    if len(set(indexes)) < len(indexes):
        return any(each)
    return all(each)


def compare(condition: dict[str, Any], value: int) -> bool:
    if condition["op"] == "SCMP_CMP_MASKED_EQ":
        return bool(value & condition["value"] == condition.get("valueTwo", 0))
    return bool(COMPARE[condition["op"]](value, condition["value"]))


def random_profile(rnd: Random) -> dict[str, Any]:
    """A small profile whose calls, arguments and values often meet those of another one."""
    actions = (
        "SCMP_ACT_ALLOW",
        "SCMP_ACT_ALLOW",
        "SCMP_ACT_ERRNO",
        "SCMP_ACT_LOG",
        "SCMP_ACT_TRAP",
    )
    return {
        "defaultAction": rnd.choice(("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS")),
        "syscalls": [
            {
                "names": rnd.sample(("chmod", "socket", "kill"), rnd.randint(1, 2)),
                "action": rnd.choice(actions),
                "args": [
                    {
                        "index": rnd.randint(0, 1),
                        "value": rnd.randint(0, 3),
                        "valueTwo": rnd.randint(0, 3),
                        "op": rnd.choice((*COMPARE, "SCMP_CMP_MASKED_EQ")),
                    }
                    for _ in range(rnd.choice((0, 1, 1, 2)))
                ],
            }
            for _ in range(rnd.randint(0, 4))
        ],
    }
