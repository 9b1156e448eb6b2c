# SPDX-License-Identifier: Apache-2.0
"""What the render thread draws with: a GPU only where one draws as the CPU does."""

import time

import numpy as np
import pytest

from appliance.bus import Publisher
from appliance.console.renderer import Renderer
from appliance.device import count_gpus
from appliance.imaging.volume_message import Volume, pack
from appliance.render import on_gpu

PATIENCE_S = 60


@pytest.fixture
def ready(tmp_path):
    """Start a renderer that has a volume; gives its status and alarms once it is ready."""
    publisher = Publisher(tmp_path, "pipeline-ct", "volume")
    renderers = []

    def start(**settings):
        renderers.append(Renderer(tmp_path, ("ct",), **settings))
        renderers[0].start()
        volume = Volume(
            pipeline="ct", scan_id="s", modality="CT", array=np.zeros((4, 4, 4), np.int16), affine=np.eye(4),
            value_range=(0, 1), acquired_ns=0, received_ns=0, version=1,
        )  # fmt: skip
        deadline = time.monotonic() + PATIENCE_S
        while not renderers[0].status()["ready"]:
            assert time.monotonic() < deadline
            publisher.publish(*pack(volume))
            time.sleep(0.05)
        return renderers[0].status()["device"], renderers[0].alarms()

    yield start
    renderers[0].stop()
    publisher.close()


def test_on_a_cpu_nobody_looks_for_a_gpu(ready):
    assert ready() == ("cpu", {})


@pytest.mark.skipif(count_gpus() > 0, reason="there is one")
def test_a_gpu_that_does_not_answer_leaves_the_cpu_and_an_alarm(ready):
    assert ready(wants_gpu=True) == ("cpu", {"3d gpu": "render: no CUDA device answers"})


def test_a_gpu_that_was_proved_draws(ready, monkeypatch):
    monkeypatch.setattr(on_gpu, "find_gpu", lambda: (on_gpu.OnGpu(), ""))
    assert ready(wants_gpu=True) == ("gpu", {})
