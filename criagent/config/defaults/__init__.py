# SPDX-License-Identifier: Apache-2.0
"""What every container of the node has unless its pod says otherwise, and what pods may ask for."""
