# SPDX-License-Identifier: Apache-2.0
"""The documents say what is there, and the house keeps its measures."""

import ast
import importlib.util
import json
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import click
import numpy as np
import pytest

from appliance import config, describe_settings
from appliance.__main__ import main
from appliance.context import Context
from appliance.errors import StageError
from appliance.frames import Frame, Scan

ROOT = Path(__file__).parents[1]
PRODUCT = sorted([*ROOT.glob("appliance/**/*.py"), *ROOT.glob("operators/**/*.py")])


def name_of(path):
    return str(path.relative_to(ROOT))


def generated():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.documents()


@pytest.mark.parametrize("path", ["config/example.yaml", "docs/configure.md"])
def test_generated_documents_are_up_to_date(path):
    assert (ROOT / path).read_text() == generated()[ROOT / path], "run: .venv/bin/python docs/generate.py"


def test_the_example_has_every_key_of_the_schema():
    keys = set()

    def collect(part):
        for inner in part if isinstance(part, list) else part.values() if isinstance(part, dict) else ():
            collect(inner)
        if isinstance(part, dict) and isinstance(part.get("properties"), dict):
            keys.update(part["properties"])

    collect(describe_settings.schema())
    example = (ROOT / "config" / "example.yaml").read_text()
    assert len(keys) > 40
    assert [key for key in sorted(keys) if not re.search(rf"^[ -]*{key}:", example, re.M)] == []


def test_the_schema_is_json_and_every_reference_in_it_leads_somewhere():
    text = json.dumps(describe_settings.schema())
    definitions = json.loads(text)["$defs"]
    targets = re.findall(r'"\$ref": "#/\$defs/([^"]+)"', text)
    assert len(targets) > 10
    assert [target for target in targets if target not in definitions] == []


def test_every_command_is_documented():
    text = (ROOT / "docs" / "operate.md").read_text()
    for name in main.list_commands(None):
        command = main.get_command(None, name)
        if command.hidden:
            continue
        for inner in command.commands if isinstance(command, click.Group) else [""]:
            assert f"`nearscan {name} {inner}".rstrip() in text


@pytest.mark.parametrize("name", ["docs/configure.md", "README.md"])
def test_the_yaml_in_documents_loads(name):
    for block in re.findall(r"```yaml\n(.*?)```", (ROOT / name).read_text(), re.S):
        config.parse(block.encode(), name)


def test_the_operator_in_contributing_works(tmp_path):
    text = (ROOT / "CONTRIBUTING.md").read_text()
    source = re.search(r"```python\n(# SPDX.*?)```", text, re.S)[1]
    module = ModuleType("smooth")
    sys.modules["smooth"] = module  # pydantic looks annotations up there
    exec(compile(source, "operators/stages/smooth.py", "exec"), module.__dict__)
    del sys.modules["smooth"]
    stage = module.make(module.Settings(sigma_pixels=2), Context("x", tmp_path, tmp_path))
    scan = Scan("s", "MR", ("y", "x"), (32, 32), "float32", 0)
    assert stage.begin(scan) is scan
    with pytest.raises(StageError, match="put reconstruct before it"):
        stage.begin(Scan("s", "MR", ("coil", "ky", "kx"), (8, 32, 32), "complex64", 0))
    image = np.zeros((32, 32), np.float32)
    image[16, 16] = 1
    image.flags.writeable = False
    out = stage.frame(
        Frame(scan_id="s", sequence=0, array=image, axes=("y", "x"), affine=np.eye(4), acquired_ns=0, received_ns=0)
    )
    assert out.array.sum() == pytest.approx(1, abs=1e-5), "a Gaussian keeps the sum"
    y, x = np.indices(image.shape) - 16
    variance = (out.array * (y**2 + x**2)).sum() / 2
    assert variance == pytest.approx(4, rel=0.02), "sigma squared"
    assert list(stage.end()) == []


def test_each_operator_file_says_what_goes_in_and_out():
    silent = [
        name_of(path)
        for path in ROOT.glob("operators/s*/[a-z]*.py")
        if not all(f"\n{word}" in (ast.get_docstring(ast.parse(path.read_text())) or "") for word in ("In:", "Out:"))
    ]
    assert silent == []


def test_files_and_functions_are_short():
    long = []
    for path in PRODUCT:
        n_lines = len(path.read_text().splitlines())
        limit = 150 if path.parent.parent.name == "operators" else 400
        if n_lines >= limit:
            long.append(f"{name_of(path)}: {n_lines} lines, fewer than {limit} are allowed")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                n_body = node.end_lineno - node.body[0].lineno + 1
                if n_body > 60:
                    long.append(f"{name_of(path)}:{node.lineno}: {node.name} has {n_body} lines")
    assert long == []


def test_every_file_says_its_licence_and_purpose():
    for path in [*PRODUCT, *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("training/*.py")]:
        text = path.read_text()
        assert "# SPDX-License-Identifier: Apache-2.0" in text.splitlines()[:2], name_of(path)
        assert "tests" in path.parts or ast.get_docstring(ast.parse(text)), name_of(path)


def test_exceptions_are_caught_whole_in_few_places():
    """The adapter's runners, the processes' mains, protocol handlers, the deliverer."""
    allowed = {
        "operators/runners.py",
        "operators/adapter.py",
        "appliance/graph.py",
        "appliance/child.py",
        "appliance/run_child.py",
        "appliance/dicom/build_results.py",
        "appliance/dicom/decode_images.py",
    }
    found = set()
    for path in PRODUCT:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and ast.unparse(node.body[-1]) != "raise":
                caught = "BaseException" if node.type is None else ast.unparse(node.type)
                if re.search(r"\b(Base)?Exception\b", caught) and name_of(path) not in allowed:
                    found.add(f"{name_of(path)}:{node.lineno}")
    assert sorted(found) == []


NAME = re.compile(r"[A-Za-z0-9_.-]+")


def plain(name):
    return re.sub(r"[-_.]+", "-", NAME.match(name)[0]).lower()


@pytest.mark.parametrize("lock", ["base", "dev", "gpu", "train", "radiomics"])
def test_every_dependency_is_locked_by_hash(lock):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {"base": ["build"], "dev": ["build", "dev"]}.get(lock, [lock])
    wanted = {plain(one) for one in project["dependencies"]}
    wanted |= {plain(one) for extra in extras for one in project["optional-dependencies"][extra]}
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
    pins = re.findall(r"^([A-Za-z0-9_.-]+)==.*((?:\n    .*)*)", text, re.M)
    locked = {plain(name) for name, _ in pins}
    assert wanted - locked == ({"tensorrt"} if lock == "gpu" else set()), "run: requirements/lock.sh"
    assert [name for name, rest in pins if "--hash=sha256:" not in rest] == []
    assert not re.search(r"://|^-", text, re.M), "no machine path, no registry address"
