# SPDX-License-Identifier: Apache-2.0
"""What the console's tests share."""

import pytest
from browser import Browser
from console_bench import Bench

from appliance.buffer import Buffer, NewInstance


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    bench.close()


@pytest.fixture
def owed(bench):
    """A buffer in which the pacs got three of five results, and one went into quarantine."""
    buffer = Buffer(bench.settings.site.data_dir)
    for i in range(5):
        buffer.put_instance(NewInstance(b"%d" % i, "1.2", f"1.2.{i}", "1.2", destinations=("pacs",)), i)
    claimed = buffer.outbox.claim("pacs", 10, 4)
    buffer.outbox.mark_sent(claimed[:3], 10)
    buffer.outbox.quarantine(claimed[3], "refused", 10)
    buffer.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser
