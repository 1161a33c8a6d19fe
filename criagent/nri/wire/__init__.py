# SPDX-License-Identifier: Apache-2.0
"""ttrpc over NRI's connection multiplexer: bytes to messages and back, and the connection."""
