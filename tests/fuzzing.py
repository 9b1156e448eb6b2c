# SPDX-License-Identifier: Apache-2.0
"""The fuzzer of OpenIGTLink, which is a benchmark, as a module: its messages of every kind serve other tests too."""

import importlib.util
from pathlib import Path

_PATH = Path(__file__).parents[1] / "benchmarks" / "fuzz_igtl.py"
_SPEC = importlib.util.spec_from_file_location("fuzz_igtl", _PATH)
fuzz_igtl = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(fuzz_igtl)
