# SPDX-License-Identifier: Apache-2.0
"""The web console: one page, a small HTTP API, metrics.

Rule: it reads the live bus and the buffer's counts, and never calls into a graph.
"""
