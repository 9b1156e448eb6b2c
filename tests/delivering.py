# SPDX-License-Identifier: Apache-2.0
"""Have a destination do its work in a test's own thread."""


def send_all(destination, now):
    """Send all that is due at `now`, then hang up."""
    while destination.step(now):
        pass
    destination._hang_up()
