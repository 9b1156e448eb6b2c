# SPDX-License-Identifier: Apache-2.0
"""Golden files: what is written is what is read, and what the gate compares."""

import hashlib
import io

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import ModelError
from appliance.inference.card import read_model
from appliance.inference.golden import plain_inputs, read_golden, write_golden
from appliance.inference.onnxruntime import OnnxRuntime
from appliance.inference.parity import largest_error

ONE = np.ones((1, 1, 32, 48), np.float32)


def archive(compressed=False, **arrays):
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


SMALL = archive(**{"a.input0": ONE[..., :4, :4], "a.output0": ONE[..., :4, :4]}, compressed=True)


def test_what_is_written_is_read_in_the_order_of_the_graph(streaming, tmp_path):
    model = read_model("streaming", streaming)
    inputs = plain_inputs([(1, 1, 32, 48), (1, 1, 16, 24)])
    path = tmp_path / "golden.npz"
    digest = write_golden(path, model.onnx, model.card.signature, inputs)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert write_golden(path, model.onnx, model.card.signature, inputs) == digest  # the same file each time
    session = OnnxRuntime().load(model.onnx, model.card.signature, "f32")
    cases = {case.name: case for case in read_golden(path.read_bytes())}
    assert set(cases) == {"noise", "zeros", "ones", "checkerboard"}
    for name, case in cases.items():
        assert all(np.array_equal(a, b) for a, b in zip(case.inputs, inputs[name], strict=True))
        assert all(np.array_equal(a, b) for a, b in zip(case.outputs, session.run(*case.inputs), strict=True))


def test_plain_inputs_show_what_their_names_say():
    inputs = plain_inputs([(1, 2, 6, 5)])
    assert {array.dtype for arrays in inputs.values() for array in arrays} == {np.dtype("float32")}
    (board,), (noise,) = inputs["checkerboard"], inputs["noise"]
    assert set(np.unique(board)) == {0, 1} and (np.abs(np.diff(board, axis=3)) == 1).all()
    assert 0 <= noise.min() < noise.max() < 1 and not inputs["zeros"][0].any() and inputs["ones"][0].all()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not an archive of golden cases; restore the file"),
        (archive(**{"a.input0": np.ones(2)}), "array 'a.input0' is float64, not float32; write it again"),
        (archive(input=np.ones(2)), "array 'input' is not named CASE.inputN or CASE.outputN; write it again"),
        (archive(**{"a.input0": ONE}), "a case without inputs or outputs, or no case at all; write it again"),
        (archive(), "a case without inputs or outputs, or no case at all; write it again"),
        (archive(**{"a.input0": np.array([{}], object), "a.output0": np.ones(1)}), "not an archive of golden cases"),
    ],
    ids=["empty file", "wrong type", "wrong name", "no output", "no case", "a pickle"],
)
def test_a_file_that_is_no_golden_file(content, words):
    with pytest.raises(ModelError, match=f"^{words}"):
        read_golden(content)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 600))
def test_damage_of_any_kind_is_a_model_error(changes, cut):
    """Or leaves a file that can be read: the digest in the card is what tells that it was damaged."""
    data = bytearray(SMALL)
    for at, value in changes:
        data[at % len(data)] = value
    try:
        cases = read_golden(bytes(data[: len(data) - cut] if cut < 100 else data))
    except ModelError as error:
        assert str(error)
    else:
        assert all(case.inputs and case.outputs for case in cases)


def test_cases_of_another_kind_of_model(streaming, tmp_path):
    """One input where the card says two: the engines would say so in words of their own."""
    card = yaml.safe_load((streaming / "streaming.yaml").read_text())
    content = archive(**{"a.input0": ONE, "a.output0": ONE})
    card["golden"]["sha256"] = hashlib.sha256(content).hexdigest()
    (tmp_path / "streaming.yaml").write_text(yaml.safe_dump(card))
    (tmp_path / "streaming.golden.npz").write_bytes(content)
    (tmp_path / "streaming.onnx").write_bytes((streaming / "streaming.onnx").read_bytes())
    with pytest.raises(ModelError) as caught:
        read_model("streaming", tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/streaming.yaml: streaming.golden.npz: case 'a' has inputs (1, 1, 32, 48) and 1 outputs, which is "
        "not what the card says; write it again"
    )


def test_an_error_is_measured_in_units_of_the_largest_value():
    """Rounding grows with what is added up; below 1 it is absolute."""
    ones, small, large = (np.full((1, 1, 2, 2), value, np.float32) for value in (1, 0.01, 100))
    off = np.float32(0.5)
    assert largest_error((ones,), (ones + off,), (ones,)) == pytest.approx(0.5)
    assert largest_error((small,), (small + off,), (small,)) == pytest.approx(0.5)
    assert largest_error((large,), (ones + off,), (ones,)) == pytest.approx(0.005)
    assert largest_error((ones,), (ones, large + off), (ones, large)) == pytest.approx(0.005)  # each output by its own
    assert np.isnan(largest_error((ones,), (ones * np.nan, ones), (ones, ones)))
    with pytest.raises(ModelError, match=r"outputs have shapes \[\(1, 1, 2, 2\)\], expected \[\(2, 2\)\]"):
        largest_error((ones,), (ones,), (ones[0, 0],))
