# SPDX-License-Identifier: Apache-2.0
"""Domain values: immutable facts about sandboxes, containers and images.

Everything here is a frozen dataclass that msgspec can encode, because the store keeps these values
as they are. Facts are stored (times, process, exit code); states are derived from them. Times are
integer nanoseconds since the epoch where CRI counts so (suffix `_ns`), 0 = has not happened.
Numeric enum values equal those of CRI v1.
"""
