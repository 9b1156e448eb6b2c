# SPDX-License-Identifier: Apache-2.0
import pytest

from appliance import device
from appliance.errors import ConfigError


def test_without_a_gpu_auto_means_cpu_and_gpu_is_an_error(monkeypatch):
    monkeypatch.setattr(device, "count_gpus", lambda: 0)
    assert device.choose_device("auto") == "cpu"
    with pytest.raises(ConfigError, match=r"site\.device: 'gpu' is asked for and no CUDA driver or device answers"):
        device.choose_device("gpu")


def test_with_a_gpu_auto_takes_it_and_cpu_does_not(monkeypatch):
    monkeypatch.setattr(device, "count_gpus", lambda: 1)
    assert [device.choose_device(wanted) for wanted in ("auto", "gpu", "cpu")] == ["gpu", "gpu", "cpu"]
