# SPDX-License-Identifier: Apache-2.0
"""Commands for a node in trouble: what the agent is doing, and a bundle to send to others."""
