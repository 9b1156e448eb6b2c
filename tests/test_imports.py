# SPDX-License-Identifier: Apache-2.0
"""Who may import whom (the layers of the design), read from the syntax trees of the product."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# (library, where it may be imported: path beginnings, or a word in an operator file's name)
LIBRARIES = [
    ({"holoscan"}, ("appliance/graph.py", "operators/adapter.py"), None),
    ({"pydicom", "pynetdicom", "highdicom"}, ("appliance/dicom/",), "dicom"),
    ({"sqlite3", "sqlite_utils"}, ("appliance/buffer/",), None),
    ({"cupy"}, ("appliance/arrays.py", "appliance/inference/"), None),
    ({"pycuda"}, ("appliance/kernels/load.py", "appliance/inference/"), None),
]

# Each layer may import itself and those before it. Longest beginning wins.
LAYERS = [
    (
        "appliance/errors.py", "appliance/frames.py", "appliance/arrays.py", "appliance/yaml_file.py",
        "appliance/tables.py", "appliance/replace_file.py",
    ),
    (
        "appliance/context.py", "appliance/device.py", "appliance/latency.py", "appliance/live_threads.py",
        "operators/__init__.py",
    ),
    ("appliance/settings.py", "appliance/bus.py", "appliance/notify_systemd.py", "appliance/tls.py"),
    (
        "appliance/mri/", "appliance/ct/", "appliance/ultrasound/", "appliance/imaging/", "appliance/mrd/",
        "appliance/igtl/", "appliance/faults/", "appliance/inference/", "appliance/dicom/", "appliance/buffer/",
        "appliance/render/", "appliance/http_deadline.py", "appliance/kernels/", "appliance/recording.py",
    ),
    ("appliance/live/",),
    ("operators/sources/", "operators/stages/", "operators/sinks/"),
    ("operators/runners.py", "operators/adapter.py"),
    ("appliance/explain_settings.py", "appliance/operator_files.py"),
    ("appliance/config.py", "appliance/describe_settings.py"),
    ("appliance/environment.py", "appliance/child.py", "appliance/graph.py", "appliance/console/"),
    ("appliance/supervise.py", "appliance/run_child.py", "appliance/daemon.py"),
    ("appliance/status_table.py", "appliance/simulate/", "appliance/demo/"),
    ("appliance/commands/",),
    ("appliance/__main__.py",),
]  # fmt: skip

NO_SOCKETS = (
    "appliance/mrd/", "appliance/igtl/", "appliance/mri/", "appliance/imaging/", "appliance/kernels/",
    "appliance/render/",
)  # fmt: skip
SOCKETS = {"socket", "socketserver", "asyncio", "zmq", "select", "selectors", "ssl", "http", "urllib"}


def product_files():
    paths = [*ROOT.glob("appliance/**/*.py"), *ROOT.glob("operators/**/*.py")]
    return {str(path.relative_to(ROOT)): path.read_text() for path in sorted(paths)}


def imported(source):
    """Yield (module, name or None) of every import, also those inside functions; not those for type checking."""
    tree = ast.parse(source)
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


def target_file(module, name, files):
    """The product's file behind an import, or None."""
    for dotted in filter(None, (f"{module}.{name}" if name else None, module)):
        path = dotted.replace(".", "/")
        for candidate in (f"{path}.py", f"{path}/__init__.py"):
            if candidate in files:
                return candidate
    return None


def layer(path):
    best = max(
        ((len(start), number) for number, starts in enumerate(LAYERS) for start in starts if path.startswith(start)),
        default=(0, None),
    )
    return best[1]


def violations(files):
    """Every broken rule, as "path: words"."""
    found = []
    for path, source in files.items():
        for module, name in imported(source):
            library = module.partition(".")[0]
            for libraries, allowed, word in LIBRARIES:
                by_name = word and path.startswith("operators/") and word in Path(path).stem
                if library in libraries and not path.startswith(allowed) and not by_name:
                    found.append(f"{path}: imports {library}")
            if library in SOCKETS and path.startswith(NO_SOCKETS):
                found.append(f"{path}: imports {library}, and is to have no sockets")
            target = target_file(module, name, files)
            here, there = layer(path), layer(target) if target else None
            if None not in (here, there) and there > here:
                found.append(f"{path}: imports {target}, which is above it")
    return found


def circles(files):
    """Modules that import each other round, at their top level."""
    edges = {
        path: {target_file(module, name, files) for module, name in top_level_imports(source)} - {None, path}
        for path, source in files.items()
    }
    edges = {
        path: {target for target in targets if not target.endswith("__init__.py")} for path, targets in edges.items()
    }
    while ends := [path for path, targets in edges.items() if not targets & edges.keys()]:
        for path in ends:
            del edges[path]
    return sorted(path for path, targets in edges.items() if targets & edges.keys())


def top_level_imports(source):
    body = "\n".join(
        ast.unparse(node) for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)
    )
    return imported(body)


def test_the_product_keeps_the_rules():
    assert violations(product_files()) == []


def test_no_circles():
    assert circles(product_files()) == []


def test_every_file_has_its_layer():
    anywhere = {"appliance/__init__.py", "operators/sources/__init__.py", "operators/stages/__init__.py"}
    assert [path for path in product_files() if layer(path) is None and path not in anywhere] == []


@pytest.mark.parametrize(
    ("path", "source", "words"),
    [
        ("operators/stages/denoise.py", "import holoscan.core", "imports holoscan"),
        ("appliance/mri/grappa.py", "def f():\n    from pydicom import dcmread", "imports pydicom"),
        ("operators/stages/x.py", "import sqlite3", "imports sqlite3"),
        ("appliance/kernels/build.py", "import pycuda.driver", "imports pycuda"),
        ("appliance/mrd/messages.py", "import socket", "imports socket, and is to have no sockets"),
        ("appliance/mri/grappa.py", "from appliance import daemon", "imports appliance/daemon.py, which is above it"),
        ("appliance/frames.py", "import appliance.config", "imports appliance/config.py, which is above it"),
        (
            "appliance/dicom/x.py",
            "from operators.sinks import preview",
            "imports operators/sinks/preview.py, which is above it",
        ),
    ],
)
def test_a_planted_violation_is_found(path, source, words):
    assert f"{path}: {words}" in violations({**product_files(), path: source})


def test_what_is_allowed_is_not_found():
    allowed = {
        "appliance/graph.py": "import holoscan",
        "operators/sinks/dicom_x.py": "import pydicom",
        "appliance/mri/x.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import holoscan",
    }
    assert violations(allowed) == []


def test_a_planted_circle_is_found():
    files = {
        "appliance/a.py": "from appliance import b",
        "appliance/b.py": "import appliance.c",
        "appliance/c.py": "from appliance.a import x",
    }
    assert circles(files) == ["appliance/a.py", "appliance/b.py", "appliance/c.py"]
    assert circles({**files, "appliance/c.py": "def f():\n    import appliance.a"}) == []
