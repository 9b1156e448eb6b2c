# SPDX-License-Identifier: Apache-2.0
"""Machines that talk to the appliance, simulated: for tests, benchmarks and the demo."""
