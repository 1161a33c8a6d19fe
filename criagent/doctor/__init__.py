"""What a node needs to run pods: each problem with its cure.

A topic is a module with its facts (a frozen dataclass), `read`, which looks at the node and changes
nothing, and `judge`, which turns facts into findings and looks at nothing.
"""

from criagent.doctor.examination import examine
from criagent.doctor.finding import Finding, Level

__all__ = ["Finding", "Level", "examine"]
