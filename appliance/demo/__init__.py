# SPDX-License-Identifier: Apache-2.0
"""nearscan demo: simulated machines around a running appliance, and an account of every image."""
