# SPDX-License-Identifier: Apache-2.0
"""Beside the graph, for who is live: peers on sockets, and what works on a thread of its own.

Rule: the graph hands over and never waits.
"""
