# SPDX-License-Identifier: Apache-2.0
"""What a node needs to run pods: each problem with its cure.

Every topic is a module with its facts (a frozen dataclass), `read`, which inspects the node and
changes nothing, and `judge`, which turns facts into findings and reads nothing.
"""

from criagent.doctor.examination import examine
from criagent.doctor.finding import Finding, Level

__all__ = ["Finding", "Level", "examine"]
