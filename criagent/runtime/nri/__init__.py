# SPDX-License-Identifier: Apache-2.0
"""The door from pods and containers to NRI plugins."""
