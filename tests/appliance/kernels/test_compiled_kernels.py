# SPDX-License-Identifier: Apache-2.0
"""The compiled kernels: made from this source, for every architecture, with the parameters that the loader packs."""

import json
import struct
import subprocess
import sys

import numpy as np
import pytest

from appliance.device import count_gpus
from appliance.kernels import build
from appliance.kernels.signatures import FATBIN, SIGNATURES

PARAMETER = 0x17  # EIATTR_KPARAM_INFO of a cubin's .nv.info: index, ordinal, offset, and flags with the size
ELF = 2  # kind of a fatbin's entry


def cubins(content):
    """Split a fatbin into {architecture: cubin}."""
    magic, _, header, size = struct.unpack_from("<IHHQ", content)
    assert (magic, header + size) == (0xBA55ED50, len(content))
    found, at = {}, header
    while at < len(content):
        kind, _, header, size = struct.unpack_from("<HHIQ", content, at)
        (architecture,) = struct.unpack_from("<I", content, at + 28)
        assert kind == ELF
        found[architecture] = content[at + header : at + header + size]
        at += header + size
    return found


def sections(elf):
    """Give {name: bytes} of a 64-bit ELF."""
    assert elf[:6] == b"\x7fELF\x02\x01"
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    n, names_at = struct.unpack_from("<HH", elf, 0x3C)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + 64 * i) for i in range(n)]
    names = elf[headers[names_at][4] :]
    return {names[h[0] : names.index(b"\0", h[0])].decode(): elf[h[4] : h[4] + h[5]] for h in headers}


def parameters(info):
    """Give the (offset, bytes) of each parameter of a kernel, from its .nv.info section."""
    found, at = {}, 0
    while at < len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, at)
        at += 4
        if (form, attribute) == (4, PARAMETER):
            _, ordinal, offset, flags = struct.unpack_from("<IHHI", info, at)
            found[ordinal] = (offset, flags >> 18)
        at += size if form == 4 else 0  # the other forms hold their value in place of the size
    return [found[ordinal] for ordinal in sorted(found)]


def packed(signature):
    """Where Python's struct, and so pycuda, puts each argument."""
    ends = [struct.calcsize(signature[: i + 1]) for i in range(len(signature))]
    return [
        (end - struct.calcsize(letter), struct.calcsize(letter)) for end, letter in zip(ends, signature, strict=True)
    ]


def check(content):
    """Every architecture, every kernel, every parameter."""
    found = cubins(content)
    assert sorted(found) == list(build.ARCHITECTURES)
    for architecture, cubin in found.items():
        parts = sections(cubin)
        names = {name.removeprefix(".text.") for name in parts if name.startswith(".text.")}
        assert names == set(SIGNATURES), f"sm_{architecture}"
        for name, signature in SIGNATURES.items():
            assert parameters(parts[f".nv.info.{name}"]) == packed(signature), f"sm_{architecture} {name}"


def test_what_is_committed_holds_every_kernel_for_every_architecture():
    check(FATBIN.read_bytes())


def test_what_is_committed_was_made_from_this_source():
    said = json.loads(build.MANIFEST.read_text())
    assert said == build.manifest(said["nvcc"]), "run: python -m appliance.kernels.build"


@pytest.fixture
def nvcc():
    found = build.nvcc()
    if found is None:
        pytest.skip("no nvcc here (the dev requirements bring it)")
    return found


def test_every_architecture_compiles_and_the_same_compiler_gives_the_same_bytes(nvcc, tmp_path):
    compiler, version = nvcc
    build.compile_fatbin(compiler, tmp_path / "kernels.fatbin")
    made = (tmp_path / "kernels.fatbin").read_bytes()
    check(made)
    if version != json.loads(build.MANIFEST.read_text())["nvcc"]:
        pytest.skip(f"compiled with nvcc {version}; only the locked one gives the committed bytes")
    assert made == FATBIN.read_bytes(), "run: python -m appliance.kernels.build"


@pytest.mark.parametrize(
    ("before", "after"),
    [("int n_rows, int n_x, Complex *out", "int n_rows, short n_x, Complex *out"), ("void unmix", "void unmixed")],
)
def test_a_kernel_that_does_not_fit_the_loader_is_found(nvcc, tmp_path, monkeypatch, before, after):
    altered = tmp_path / "kernels.cu"
    text = build.SOURCE.read_text()
    assert before in text
    altered.write_text(text.replace(before, after))
    monkeypatch.setattr(build, "SOURCE", altered)
    monkeypatch.setattr(build, "ARCHITECTURES", (90,))
    build.compile_fatbin(nvcc[0], tmp_path / "kernels.fatbin", (90,))
    with pytest.raises(AssertionError):
        check((tmp_path / "kernels.fatbin").read_bytes())


def test_nothing_of_a_gpu_is_imported_on_a_cpu():
    code = "import appliance.kernels.signatures, appliance.kernels.build, sys; print('pycuda' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.gpu
@pytest.mark.skipif(count_gpus() == 0, reason="no GPU")
def test_a_gpu_gives_what_the_cpu_build_gives(cpu):
    """Bit for bit: neither build contracts, and both divide as IEEE 754 says."""
    import pycuda.driver as cuda

    from appliance.kernels.load import Kernels

    kernels = Kernels()
    rng = np.random.default_rng(0)
    image, noise = rng.normal(500, 400, (33, 47)).astype(np.float32), rng.normal(0, 9, (34, 48)).astype(np.float32)
    expected = [np.zeros(image.shape, np.float32), np.zeros(image.shape, np.uint16), np.zeros(1, np.uint32)]
    numbers = (12.5, 3.0, 0.7, 4.0, 0.0, 33.3, 33, 47, 48)
    cpu("from_model", image, noise, None, *numbers, *expected)

    context = cuda.Device(0).retain_primary_context()
    context.push()
    try:
        stream = cuda.Stream()
        on_gpu = [cuda.to_device(one) for one in (image, noise, *(np.zeros_like(one) for one in expected))]
        addresses = [int(one) for one in on_gpu]
        kernels.start("from_model", 33, 47, stream, *addresses[:2], 0, *numbers, *addresses[2:])
        stream.synchronize()
        for here, there in zip(expected, on_gpu[2:], strict=True):
            np.testing.assert_array_equal(cuda.from_device_like(there, here), here)
    finally:
        cuda.Context.pop()
