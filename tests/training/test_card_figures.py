# SPDX-License-Identifier: Apache-2.0
"""The figures in the shipped denoiser's card, measured again."""

from pathlib import Path

import pytest

from appliance.inference.card import read_model, shipped_models
from appliance.inference.openvino import OpenVino
from training.validate_denoise import validate_denoise

SERIES = Path(__file__).parents[2] / "../shared/data/series/mr_t1_siemens_HFS.tar.xz"


def test_the_card_says_what_is_measured():
    if not SERIES.exists():
        pytest.skip(f"no {SERIES}")
    model = read_model("mr-denoise", shipped_models())
    session = OpenVino().load(model.onnx, model.card.signature, "f32")
    measured = validate_denoise(session.run, SERIES, model.card.input.multiple_px)
    assert len(measured) == len(model.card.validated_on)
    for row, said in zip(measured, model.card.validated_on, strict=True):
        assert (row.data, row.noise_percent, row.other) == (said.data, said.noise_percent, said.other)
        # 0.02 dB: the card is rounded to 0.01, and other processors round the last bit otherwise
        assert row.model_db == pytest.approx(said.model_db, abs=0.02)
        assert row.noisy_db == pytest.approx(said.noisy_db, abs=0.02)
        assert row.other_db == pytest.approx(said.other_db, abs=0.02)
