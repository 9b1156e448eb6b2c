# SPDX-License-Identifier: Apache-2.0
"""What is read of received data sets: the same as pydicom reads where it can, and nothing bad where it cannot."""

import random
import time
import tracemalloc
from pathlib import Path

import pytest
from pydicom import dcmread

from appliance.buffer import ObjectError
from appliance.dicom.describe import KEYWORDS, describe
from appliance.dicom.part10 import split

DATA = Path(__file__).parents[4] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"needs the scanner data in {DATA}")


def files(*folders):
    paths = [path for folder in folders for path in sorted((DATA / folder).rglob("*.dcm"))]
    return [(path.name, path) for path in paths]


@needs_data
@pytest.mark.filterwarnings("ignore")
def test_real_files_say_what_pydicom_says_they_do():
    n_values = n_files = 0
    for name, path in files("pydicom_data", "vendors", "dcmqi"):
        try:
            parts = split(path.read_bytes())
        except ObjectError:
            continue
        if parts.transfer_syntax_uid == "1.2.840.10008.1.2.1.99":
            continue
        attributes, problem = describe(parts.dataset, parts.transfer_syntax_uid)
        assert problem == "", name
        ds = dcmread(path, stop_before_pixels=True, force=True)
        for keyword in KEYWORDS.values():
            if keyword not in ds:
                assert keyword not in attributes, (name, keyword)
                continue
            value = ds[keyword].value
            listed = value if isinstance(value, list) or type(value).__name__ == "MultiValue" else [value]
            expected = "\\".join("" if one is None else str(one).strip() for one in listed)
            assert attributes[keyword] == "".join(c for c in expected if c.isprintable()), (name, keyword)
            n_values += 1
        n_files += 1
    print(f"{n_values} values of {n_files} files")
    assert n_files > 50


@needs_data
@pytest.mark.parametrize("path", [path for _, path in files("malformed_generated")], ids=lambda path: path.name)
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"])
def test_hostile_files_cost_little(path, syntax):
    raw = path.read_bytes()
    tracemalloc.start()
    started = time.process_time()
    describe(raw[132:], syntax)
    describe(raw, syntax)
    seconds, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
    assert seconds < 5, "bounded; a bomb takes minutes"


def nested(depth):
    return b"\x08\0\x15\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff" * depth


def test_twenty_thousand_sequences_deep_is_told_not_followed():
    attributes, problem = describe(b"\x08\0\x60\0CS\x02\0CT" + nested(20_000), "1.2.840.10008.1.2.1")
    assert attributes == {"Modality": "CT"}
    assert problem == "sequences nested more than 64 deep"


def test_what_is_in_a_sequence_is_not_the_instances_own():
    inner = b"\x10\0\x20\0LO\x04\0EVIL"
    end = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    data = nested(1) + inner + end + b"\x10\0\x20\0LO\x04\0GOOD"
    assert describe(data, "1.2.840.10008.1.2.1") == ({"PatientID": "GOOD"}, "")


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"])
def test_noise_raises_nothing(syntax):
    random.seed(3)
    whole = b"\x08\0\x05\0CS\x0a\0ISO_IR 192\x08\0\x60\0CS\x02\0CT" + nested(2) + b"\x28\0\x10\0US\x02\0\x10\0"
    for _ in range(20_000):
        raw = bytearray(whole)
        for _ in range(random.randint(1, 5)):
            raw[random.randrange(len(raw))] = random.randrange(256)
        describe(raw[: random.randrange(len(raw) + 1)], syntax)
