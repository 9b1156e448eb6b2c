# SPDX-License-Identifier: Apache-2.0
"""The YAML file: what loads, and the exact words for what does not."""
# ruff: noqa: E501 - each problem on one line, as it is printed

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance import config
from appliance.errors import ConfigError
from appliance.settings import Settings

DESIGN = """\
site: {name: mri-1, data_dir: /var/lib/nearscan, device: auto}
listen:
  dicom: {ae_title: NEARSCAN, port: 11112}
destinations:
  pacs: {dicom: {host: 127.0.0.1, port: 4242, ae_title: ORTHANC}}
pipelines:
  mri-live:
    source: {mrd: {port: 9002}}
    stages:
      - reconstruct: {method: grappa}
      - denoise: {model: mr-denoise}
      - detect_anomalies
    sinks:
      - mrd_reply
      - openigtlink: {port: 18944}
      - dicom_results: {to: [pacs]}
      - preview
console: {port: 8080}
"""

CONFIG = Path(__file__).parents[2] / "config"


def problems(text):
    """The lines of the error; none where the text loads."""
    raw = text if isinstance(text, bytes) else text.encode()
    try:
        config.parse(raw, "site.yaml")
    except ConfigError as error:
        return str(error).splitlines()
    return []


def test_the_file_of_the_design_loads_as_it_stands():
    site = config.parse(DESIGN.encode(), "site.yaml")
    pipeline = site.pipelines["mri-live"]
    assert (pipeline.source.name, pipeline.source.settings.port) == ("mrd", 9002)
    assert [stage.name for stage in pipeline.stages] == ["reconstruct", "denoise", "detect_anomalies"]
    assert [sink.name for sink in pipeline.sinks] == ["mrd_reply", "openigtlink", "dicom_results", "preview"]
    assert pipeline.stages[1].settings.model == "mr-denoise"
    assert pipeline.sinks[2].settings.to == ("pacs",)
    assert site.destinations["pacs"].dicom.port == 4242
    assert site.console is not None and site.console.port == 8080


@pytest.mark.parametrize("path", sorted(CONFIG.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_file_loads(path):
    assert isinstance(config.load(path), Settings)


def test_a_source_may_be_its_name_alone():
    site = config.parse(DESIGN.replace("{mrd: {port: 9002}}", "mrd").encode(), "site.yaml")
    assert site.pipelines["mri-live"].source.settings.port == 9002


# (what to replace in DESIGN, by what, the one problem that is told)
ONE_PROBLEM = [
    ("port: 9002", "port: 99999", "8:26: pipelines.mri-live.source.mrd.port: must be 0..65535, got 99999"),
    ("port: 8080", "port: 0", "18:17: console.port: must be 1..65535, got 0"),
    ("port: 8080", "port: 'x'", "18:17: console.port: must be a whole number, got 'x'"),
    ("port: 8080", "port: true", "18:17: console.port: must be a whole number, got true"),
    ("port: 8080", "port: 80.5", "18:17: console.port: must be a whole number, got 80.5"),
    ("port: 8080", "prt: 8080", "18:11: console.prt: unknown key 'prt'; did you mean 'port'?"),
    ("port: 8080", "zzz: 1", "18:11: console.zzz: unknown key 'zzz'; known: accounts, bind, idle_minutes, kiosk, metrics, names, plain_http, port, session_h, tls"),
    ("port: 8080", "kiosk: [here]", "18:19: console.kiosk[0]: must be an address or a network such as 192.0.2.0/24, got 'here'"),
    ("port: 8080", "metrics: [192.0.2.7/24]", "18:21: console.metrics[0]: must be an address or a network such as 192.0.2.0/24, got '192.0.2.7/24'"),
    ("port: 8080", "accounts: a.json", "18:21: console.accounts: must be an absolute path, got 'a.json'; begin it with '/'"),
    ("console:", "consol:", "18:1: consol: unknown key 'consol'; did you mean 'console'?"),
    ("{port: 8080}", "{port: 8080, port: 1}", "18:23: console.port: duplicate key, first on line 18; remove one"),
    ("port: 4242, ", "", "5:10: destinations.pacs.dicom.port: missing; add it: TCP port of the PACS."),
    ("name: mri-1, ", "", "1:1: site.name: missing; add it: Name of this box; appears in logs, metrics and results."),
    ("device: auto", "device: cuda", "1:58: site.device: must be 'auto', 'gpu' or 'cpu', got 'cuda'"),
    ("data_dir: /var", "data_dir: var", "1:31: site.data_dir: must be an absolute path, got 'var/lib/nearscan'; begin it with '/'"),
    ("name: mri-1", "name: mri 1", "1:14: site.name: must be letters, digits, '-' and '_' only, beginning with a letter or digit, got 'mri 1'"),
    ("console:", "destination: {}\nconsole:", "18:1: destination: unknown key 'destination'; did you mean 'destinations'?"),
    ("  mri-live:", "  mri live:", "7:3: pipelines.mri live: must be letters, digits, '-' and '_' only, beginning with a letter or digit, got 'mri live'"),
    ("host: 127.0.0.1", "host: ''", "5:24: destinations.pacs.dicom.host: must not be empty, got ''"),
    ("ae_title: ORTHANC", "ae_title: ORTHANC_IS_TOO_LONG", "5:57: destinations.pacs.dicom.ae_title: must have at most 16 characters, got 'ORTHANC_IS_TOO_LONG'"),
    ("ae_title: NEARSCAN", r"ae_title: NEAR\SCAN", r"3:21: listen.dicom.ae_title: must be printable ASCII without backslash, got 'NEAR\\SCAN'"),
    ("console: {port: 8080}", "console:", "18:1: console: has no value; write one, or {} for all defaults, or remove the line"),
    ("console: {port: 8080}", "console: [1]", "18:10: console: must be a group of keys, got a list"),
    ("- detect_anomalies", "- detect_anomalys", "12:9: pipelines.mri-live.stages[2]: unknown stage 'detect_anomalys'; did you mean 'detect_anomalies'?"),
    ("- mrd_reply", "- mrd-reply", "14:9: pipelines.mri-live.sinks[0]: unknown sink 'mrd-reply'; did you mean 'mrd_reply'?"),
    ("model: mr-denoise", "modell: mr-denoise", "11:19: pipelines.mri-live.stages[1].denoise.modell: unknown key 'modell'; did you mean 'model'?"),
    ("- denoise: {model: mr-denoise}", "- denoise: {}\n        model: mr-denoise", "11:9: pipelines.mri-live.stages[1]: one stage is expected, got 2 keys ('denoise', 'model'); indent its settings below its name"),
    ("- detect_anomalies", "- 7", "12:9: pipelines.mri-live.stages[2]: must be the name of a stage, or a name with its settings"),
    ("- detect_anomalies", "- ../../etc/passwd", "12:9: pipelines.mri-live.stages[2]: unknown stage '../../etc/passwd'; known: denoise, detect_anomalies, reconstruct"),
    ("to: [pacs]", "to: [pac]", "16:30: pipelines.mri-live.sinks[2].dicom_results.to[0]: unknown destination 'pac'; did you mean 'pacs'?"),
    ("to: [pacs]", "to: []", "16:29: pipelines.mri-live.sinks[2].dicom_results.to: must have at least 1, got a list"),
    ("port: 18944", "port: 9002", "15:29: pipelines.mri-live.sinks[1].openigtlink.port: port 9002 is already taken by pipelines.mri-live.source.mrd.port; choose another"),
    ("port: 8080", "port: 11112", "18:17: console.port: port 11112 is already taken by listen.dicom.port; choose another"),
    ("port: 8080", "port: 08080", "18:17: console.port: must be a whole number, got '08080'"),
    ("port: 8080", "port: 0o17", "18:17: console.port: must be a whole number, got '0o17'"),
    ("port: 8080", "port: 017", "18:17: console.port: number '017' is not plain decimal; write it so, or in quotes if it is text"),
    ("port: 8080", "port: 1e3", "18:17: console.port: must be a whole number, got 1000.0"),
    ("port: 8080", "port: .inf", "18:17: console.port: number '.inf' is not plain decimal; write it so, or in quotes if it is text"),
    ("port: 8080", "port: !!python/name:os.system x", "18:17: console.port: tag 'tag:yaml.org,2002:python/name:os.system' is not read; remove it"),
    ("console: ", "console: &c ", "18:10: anchors (&) and aliases (*) are not read; write the value out"),
    ("console: {port: 8080}", "console: {port: 8080", "19:1: not YAML: expected ',' or '}', but got '<stream end>'; check quotes, brackets and indentation here and on the line before"),
    ("  dicom: {ae", "\tdicom: {ae", "3:1: not YAML: found character '\\t' that cannot start any token; indent with spaces, not tabs"),
    ("console:", "---\nconsole:", "18:1: not YAML: but found another document; remove the second '---'"),
    ("console:", "? [a]\n: b\nconsole:", "18:3: ?: a key must be a word; check brackets and colons"),
    ("console:", "con\x07sole:", "18:4: character 7 may not stand in YAML; remove it"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "problem"), ONE_PROBLEM, ids=[case[1][:40] for case in ONE_PROBLEM])
def test_one_problem_is_told_at_its_place(old, new, problem):
    assert problems(DESIGN.replace(old, new, 1)) == [f"site.yaml:{problem}"]


def test_all_problems_are_told_at_once_in_the_order_of_the_file():
    text = DESIGN.replace("port: 11112", "port: 0").replace("host: 127.0.0.1, ", "").replace("to: [pacs]", "to: [x]")
    text = text.replace("method: grappa", "method: magic").replace("port: 8080", "port: 8080, colour: red")
    places = [line.split(":")[1] for line in problems(text)]
    assert places == ["3", "5", "10", "16", "18"]


def test_impossible_together():
    text = DESIGN + "buffer: {retry_min_s: 5, retry_max_s: 2}\n"
    assert problems(text) == ["site.yaml:19:39: buffer.retry_max_s: must be at least retry_min_s (5), got 2; raise it"]


def test_the_same_port_on_two_addresses_is_no_problem():
    text = DESIGN.replace("port: 8080", "port: 18944, bind: 127.0.0.2")
    assert problems(text) == []


WHOLE_FILE = [
    (b"", "1:1: the file is empty; start from config/example.yaml"),
    (b"# only a comment\n", "1:1: the file is empty; start from config/example.yaml"),
    (b"- a\n- b\n", "1:1: the file must hold keys such as 'site:'; start from config/example.yaml"),
    (b"site: \xe9\n", "1:7: byte 0xe9 is not UTF-8; save the file as UTF-8"),
    ("site: x".encode("utf-16"), "1:1: byte 0xff is not UTF-8; save the file as UTF-8"),
    (b" " * 300_000, "1:1: the file has 300000 bytes, at most 262144 are read; is it the right file?"),
    (b"a: " + b"[" * 1000, "1:33: nested deeper than 30 levels; a bracket may be missing"),
    (b'a: "\\UFFFFFFFF"', "1:1: not YAML: Python int too large to convert to C int; look for an escape in quotes"),
    (b"a: *b", "1:4: anchors (&) and aliases (*) are not read; write the value out"),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "problem"), WHOLE_FILE, ids=range(len(WHOLE_FILE)))
def test_files_that_are_no_site(raw, problem):
    assert problems(raw) == [f"site.yaml:{problem}"]


def test_a_byte_order_mark_is_no_problem():
    assert problems(b"\xef\xbb\xbf" + DESIGN.encode()) == []


def test_words_that_yaml_1_1_takes_for_booleans_are_text():
    assert config.parse(b"site: {name: no}", "f").site.name == "no"


def test_an_unreadable_file(tmp_path):
    with pytest.raises(ConfigError, match=r"missing\.yaml: cannot be read: No such file or directory; check the path"):
        config.load(tmp_path / "missing.yaml")


@given(st.text() | st.binary().map(lambda raw: raw.decode("latin-1")))
@settings(max_examples=150, deadline=None)
def test_any_text_is_settings_or_problems(text):
    for line in problems(text.encode("utf-8", "surrogatepass")):
        assert line.startswith("site.yaml:") or "\n" in text or "\x85" in text or "\u2028" in text


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_a_damaged_site_is_settings_or_problems(data):
    at = data.draw(st.integers(0, len(DESIGN)))
    cut = data.draw(st.integers(0, 12))
    new = data.draw(st.text(st.sampled_from("{}[]:,-'\"#&*!|>%@ \n\tab0.~?"), max_size=6))
    for line in problems(DESIGN[:at] + new + DESIGN[at + cut :]):
        assert line.startswith("site.yaml:")
