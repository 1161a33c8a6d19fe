# SPDX-License-Identifier: Apache-2.0
"""Commands that read pods and containers of the running agent over the CRI, and exec.

They change nothing on the node; crictl does that. Everything here is a client of the CRI socket.
"""
