# SPDX-License-Identifier: Apache-2.0
"""Run a shipped model on whatever this machine has, after it reproduced its golden output here.

Rule: no network, no telemetry, and nothing of a GPU is imported without a driver.
"""
