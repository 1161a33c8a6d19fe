# SPDX-License-Identifier: Apache-2.0
"""The intersection of two seccomp profiles in OCI form: it permits a call only if both do.

Of two actions the more restrictive one counts, in the order of KEP-6061; of equal ones the first
profile's error number. Where the exact intersection cannot be said in a profile, the call gets the
most restrictive action of all that could apply.

What runtimes load through libseccomp is known for certain only for some sets of rules of one call:
unconditional ones, one rule with several conditions, and rules of one condition each. Any other
set counts as one unconditional rule, and no other is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from criagent.runtime.spec.inputs import OciObject
from criagent.runtime.spec.security import seccomp_default as default

ACTIONS = {
    "SCMP_ACT_ALLOW": 0,
    "SCMP_ACT_LOG": 1,
    "SCMP_ACT_TRACE": 2,
    "SCMP_ACT_NOTIFY": 3,
    "SCMP_ACT_ERRNO": 4,
    "SCMP_ACT_TRAP": 5,
    "SCMP_ACT_KILL": 6,
    "SCMP_ACT_KILL_THREAD": 6,
    "SCMP_ACT_KILL_PROCESS": 7,
}
_STRICTEST = 8  # of an action that nobody knows; the runtime refuses it
_MASKED = "SCMP_CMP_MASKED_EQ"
_NEGATED = {
    "SCMP_CMP_EQ": "SCMP_CMP_NE",
    "SCMP_CMP_NE": "SCMP_CMP_EQ",
    "SCMP_CMP_LT": "SCMP_CMP_GE",
    "SCMP_CMP_GE": "SCMP_CMP_LT",
    "SCMP_CMP_LE": "SCMP_CMP_GT",
    "SCMP_CMP_GT": "SCMP_CMP_LE",
}
OPERATORS = {*_NEGATED, _MASKED}
_WITH_ERRNO = {"SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"}
_EPERM = 1
_MAX_RULES = 256  # of one call in the result
# Their calls also come through socketcall(2) and ipc(2), where the arguments are not visible.
_MULTIPLEXING = {
    "SCMP_ARCH_X86", "SCMP_ARCH_MIPS", "SCMP_ARCH_MIPSEL", "SCMP_ARCH_PPC", "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE", "SCMP_ARCH_S390", "SCMP_ARCH_S390X", "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64", "SCMP_ARCH_SHEB", "SCMP_ARCH_SH", "SCMP_ARCH_M68K",
}  # fmt: skip
_NARROW = {"SCMP_ARCH_ARM", "SCMP_ARCH_X32"}  # arguments may have 32 bits
_MULTIPLEXED = {
    "socketcall": (
        "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom "
        "recvmmsg recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socket socketpair"
    ).split(),
    "ipc": (
        "msgctl msgget msgrcv msgsnd semctl semget semop semtimedop shmat shmctl shmdt shmget"
    ).split(),
}


class Action(NamedTuple):
    """What happens to a call; `errno` is None for actions without one."""

    name: str
    errno: int | None


class Condition(NamedTuple):
    """A comparison of an argument. SCMP_CMP_MASKED_EQ has the mask as `value`, the rest ignore
    `second`.
    """

    argument: int
    op: str
    value: int
    second: int


Rule = tuple[Condition, ...]  # all of its conditions hold


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """`hit` if a rule holds, else `miss`; without rules always `miss`."""

    rules: tuple[Rule, ...]
    hit: Action
    miss: Action


@dataclasses.dataclass(frozen=True, slots=True)
class Merged:
    """An intersection, and the names of calls that it permits less than the second profile does.

    `constrained` has "*" for those that the second profile does not name.
    """

    profile: OciObject
    constrained: tuple[str, ...]


def intersection(base: OciObject, own: OciObject, machine: str) -> Merged:
    """The intersection of two profiles, for the node's machine."""
    natives = default.ARCHITECTURES.get(machine, [])[:1]
    architectures = _architectures(base, own, natives)
    first, second = _Reader(base), _Reader(own)
    otherwise = _stricter(first.default, second.default)
    names = sorted({*first.rules, *second.rules})
    verdicts = {name: _both(first.verdict(name), second.verdict(name)) for name in names}
    if _MULTIPLEXING.intersection(natives):
        _multiplexed(verdicts, otherwise)
    narrow = bool(_NARROW.intersection(architectures))
    writer = _Writer(otherwise, narrow=narrow)
    constrained = ["*"] if otherwise != second.default else []
    for name, verdict in verdicts.items():
        written = writer.add(name, verdict)
        if name in second.rules and written != second.verdict(name):
            constrained.append(name)
    made: OciObject = {"defaultAction": otherwise.name}
    if otherwise.errno is not None:
        made["defaultErrnoRet"] = otherwise.errno
    if architectures:
        made["architectures"] = architectures
    made |= _filter_options(base, own, verdicts.values(), otherwise)
    made["syscalls"] = writer.entries()
    return Merged(made, tuple(constrained))


def rules_by_name(profile: OciObject) -> Mapping[str, list[tuple[Rule, Action]]]:
    """The rules that a runtime loads, by call.

    As runc and crun load them: none that says what the default says; an entry with several
    conditions on one argument counts as a rule for each condition.
    """
    found: dict[str, list[tuple[Rule, Action]]] = {}
    otherwise = _action(profile["defaultAction"], profile.get("defaultErrnoRet"))
    for entry in profile.get("syscalls") or ():
        action = _action(entry["action"], entry.get("errnoRet"))
        if action == otherwise:
            continue
        conditions = tuple(sorted(map(_condition, entry.get("args") or ())))
        indexes = {condition.argument for condition in conditions}
        split = len(indexes) < len(conditions)
        rules: list[Rule] = [(one,) for one in conditions] if split else [conditions]
        for name in entry["names"]:
            found.setdefault(name, []).extend((rule, action) for rule in rules)
    return found


def contradict(rules: Sequence[tuple[Rule, Action]]) -> bool:
    """Whether rules of one call have several actions."""
    return len({action for _, action in rules}) > 1


class _Reader:
    def __init__(self, profile: OciObject) -> None:
        self.default = _action(profile["defaultAction"], profile.get("defaultErrnoRet"))
        self.rules = rules_by_name(profile)

    def verdict(self, name: str) -> Verdict:
        loaded = self.rules.get(name, [])
        if not loaded:
            return _always(self.default)
        actions = [action for _, action in loaded]
        unconditional = [action for rule, action in loaded if not rule]
        if contradict(loaded):
            return _always(_strictest([*actions, self.default]))
        if unconditional:
            return _always(actions[0])
        rules = tuple(dict.fromkeys(rule for rule, _ in loaded))
        if not _is_safe(rules):
            return _always(_stricter(self.default, actions[0]))
        return Verdict(rules, actions[0], self.default)


class _Writer:
    def __init__(self, otherwise: Action, *, narrow: bool) -> None:
        self._default = otherwise
        self._narrow = narrow
        self._always: dict[Action, list[str]] = {}
        self._rules: list[OciObject] = []

    def add(self, name: str, verdict: Verdict) -> Verdict:
        """Write the verdict, or a more restrictive one; returns which."""
        ways = _ways(verdict, self._default) if verdict.rules else None
        wide = any(c.value >> 32 or c.second >> 32 for rule in verdict.rules for c in rule)
        if ways is None or (wide and self._narrow):
            action = _stricter(verdict.miss, verdict.hit)
            if action != self._default:
                self._always.setdefault(action, []).append(name)
            return _always(action)
        for rules, action in ways:
            self._rules += [_entry([name], action, rule) for rule in rules]
        return verdict

    def entries(self) -> list[OciObject]:
        always = [_entry(names, action, ()) for action, names in self._always.items()]
        return [*always, *self._rules]


def _ways(verdict: Verdict, otherwise: Action) -> list[tuple[tuple[Rule, ...], Action]] | None:
    """Rules with their action that say the verdict beside the default; None if none can."""
    if verdict.miss == otherwise:
        return [(verdict.rules, verdict.hit)]
    rest = _negated(verdict.rules)
    if rest is None:
        return None
    if verdict.hit == otherwise:
        return [(rest, verdict.miss)]
    if len(verdict.rules) == len(verdict.rules[0]) == 1:
        return [(verdict.rules, verdict.hit), (rest, verdict.miss)]
    return None


def _both(a: Verdict, b: Verdict) -> Verdict:
    """What both permit."""
    none = _stricter(a.miss, b.miss)
    only_a, only_b = _stricter(a.hit, b.miss), _stricter(a.miss, b.hit)
    hits = _stricter(a.hit, b.hit)
    if not a.rules:
        return _settled(b.rules, only_b, none)
    if not b.rules:
        return _settled(a.rules, only_a, none)
    if a.rules == b.rules:
        return _settled(a.rules, hits, none)
    # Rules that hold together with an action, which none of the other cases has.
    rules: tuple[Rule, ...] | None = None
    hit = hits
    if hits == only_a and only_b == none:
        rules = a.rules
    elif hits == only_b and only_a == none:
        rules = b.rules
    elif hits == only_a == only_b:
        rules = _limited(dict.fromkeys((*a.rules, *b.rules)))
    elif only_a == only_b == none:
        rules = _product(a.rules, b.rules)
    elif hits == only_b == none:
        hit, rules = only_a, _product(a.rules, _negated(b.rules))
    elif hits == only_a == none:
        hit, rules = only_b, _product(_negated(a.rules), b.rules)
    if rules is None:
        return _always(_strictest([none, only_a, only_b, hits]))
    return _settled(rules, hit, none)


def _settled(rules: tuple[Rule, ...], hit: Action, miss: Action) -> Verdict:
    return Verdict(rules, hit, miss) if rules and hit != miss else _always(miss)


def _always(action: Action) -> Verdict:
    return Verdict((), action, action)


def _is_safe(rules: Sequence[Rule]) -> bool:
    return len(rules) == 1 or all(len(rule) == 1 for rule in rules)


def _limited(rules: Iterable[Rule]) -> tuple[Rule, ...] | None:
    found = tuple(rules)
    return found if len(found) <= _MAX_RULES and _is_safe(found) else None


def _negated(rules: tuple[Rule, ...]) -> tuple[Rule, ...] | None:
    """Rules that hold when none of `rules` does; None if there are none such."""
    opposite = []
    for condition in (one for rule in rules for one in rule):
        if condition.op not in _NEGATED:
            return None
        opposite.append(condition._replace(op=_NEGATED[condition.op]))
    if len(rules) == 1:
        return tuple((one,) for one in opposite)
    if len({one.argument for one in opposite}) < len(opposite):
        return None  # several conditions on one argument are alternatives to a runtime
    return (tuple(sorted(opposite)),)


def _product(
    first: tuple[Rule, ...] | None, second: tuple[Rule, ...] | None
) -> tuple[Rule, ...] | None:
    """Rules that hold when one of each does, () = never; None if that cannot be said."""
    if first is None or second is None or len(first) * len(second) > _MAX_RULES**2:
        return None
    found: dict[Rule, None] = {}
    for a in first:
        for b in second:
            rule = _joined(a, b)
            if rule is None:
                return None
            if rule:
                found[rule] = None
    return _limited(found)


def _joined(a: Rule, b: Rule) -> Rule | None:
    """Both rules as one, () = never; None if that cannot be said."""
    found = {condition.argument: condition for condition in a}
    for condition in b:
        other = found.setdefault(condition.argument, condition)
        if other == condition:
            continue
        exact, test = (other, condition) if other.op == "SCMP_CMP_EQ" else (condition, other)
        if exact.op != "SCMP_CMP_EQ":
            return None
        if not _holds(test, exact.value):
            return ()
        found[condition.argument] = exact
    return tuple(sorted(found.values()))


def _holds(condition: Condition, value: int) -> bool:
    match condition.op:
        case "SCMP_CMP_EQ":
            return value == condition.value
        case "SCMP_CMP_NE":
            return value != condition.value
        case "SCMP_CMP_LT":
            return value < condition.value
        case "SCMP_CMP_LE":
            return value <= condition.value
        case "SCMP_CMP_GT":
            return value > condition.value
        case "SCMP_CMP_GE":
            return value >= condition.value
    return value & condition.value == condition.second


def _multiplexed(verdicts: dict[str, Verdict], otherwise: Action) -> None:
    """socketcall and ipc permit nothing that one of the calls behind them does not."""
    for name, calls in _MULTIPLEXED.items():
        behind = [verdicts.get(call, _always(otherwise)) for call in (name, *calls)]
        verdicts[name] = _always(_strictest([x for v in behind for x in (v.miss, v.hit)]))


def _architectures(base: OciObject, own: OciObject, natives: list[str]) -> list[str]:
    """Those that both cover, without what multiplexes calls; the native one always is."""
    asked = {*natives, *(own.get("architectures") or ())}
    rest = [
        name
        for name in base.get("architectures") or ()
        if name in asked and name not in _MULTIPLEXING
    ]
    return list(dict.fromkeys((*natives, *rest)))


def _filter_options(
    base: OciObject, own: OciObject, verdicts: Iterable[Verdict], otherwise: Action
) -> OciObject:
    """Flags by what they loosen, and the listener, which is the first profile's alone."""
    first, second = set(base.get("flags") or ()), set(own.get("flags") or ())
    flags = (first | second) - {"SECCOMP_FILTER_FLAG_SPEC_ALLOW"} | (first & second)
    made: OciObject = {"flags": sorted(flags)} if flags else {}
    actions = {otherwise.name, *(a.name for v in verdicts for a in (v.hit, v.miss))}
    if "SCMP_ACT_NOTIFY" in actions:
        for key in ("listenerPath", "listenerMetadata"):
            if base.get(key):
                made[key] = base[key]
    return made


def _action(name: str, errno: int | None) -> Action:
    name = "SCMP_ACT_KILL_THREAD" if name == "SCMP_ACT_KILL" else name
    if name not in _WITH_ERRNO:
        return Action(name, None)
    return Action(name, _EPERM if errno is None else errno)


def _stricter(first: Action, second: Action) -> Action:
    """The more restrictive one; of equal ones the first."""
    one, other = ACTIONS.get(first.name, _STRICTEST), ACTIONS.get(second.name, _STRICTEST)
    return second if other > one else first


def _strictest(actions: Sequence[Action]) -> Action:
    found = actions[0]
    for action in actions[1:]:
        found = _stricter(found, action)
    return found


def _condition(raw: Mapping[str, Any]) -> Condition:
    second = raw.get("valueTwo", 0) if raw["op"] == _MASKED else 0
    return Condition(raw["index"], raw["op"], raw["value"], second)


def _entry(names: Sequence[str], action: Action, rule: Rule) -> OciObject:
    made: OciObject = {"names": list(names), "action": action.name}
    if action.errno is not None:
        made["errnoRet"] = action.errno
    if rule:
        made["args"] = [
            {"index": c.argument, "value": c.value, "valueTwo": c.second, "op": c.op} for c in rule
        ]
    return made
