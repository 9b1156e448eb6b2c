# SPDX-License-Identifier: Apache-2.0
"""The page's own files: nothing that a hospital's old browser lacks, nothing from elsewhere, no markup from outside."""

import re
from pathlib import Path

import pytest

from appliance.console.app import STATIC

# What came after Chromium 80, by chromestatus.com and the Browser Compatibility Data of MDN
TOO_NEW = {
    "js": [
        r"\.replaceChildren\(", r"\.replaceAll\(", r"\.at\(", r"\?\?=", r"\|\|=", r"&&=", r"Promise\.any\(",
        r"structuredClone\(", r"AbortSignal\.(timeout|any)", r"Object\.(hasOwn|groupBy)\(", r"\.findLast\(",
        r"\.toSorted\(", r"\.toReversed\(", r"\.toSpliced\(", r"^await ", r"static \{", r"#\w+\(.*\) \{",
        r"\d_\d", r"randomUUID", r"\.checkVisibility\(", r"showPopover\(", r"setHTML", r"\.isSecureContext\b.*\?\?=",
    ],
    "css": [
        r"(^|[{; ])(row-|column-)?gap:", r"(^|[{; ])inset:", r"aspect-ratio", r":is\(", r":where\(", r":has\(",
        r"accent-color", r"@layer", r"@container", r"[0-9](dvh|svh|lvh)", r"color-mix\(", r"overflow: clip",
        r"text-wrap", r"@property", r"&:", r"scrollbar-(gutter|width|color)",
    ],
}  # fmt: skip
FROM_OUTSIDE = [r"innerHTML", r"outerHTML", r"insertAdjacentHTML", r"document\.write", r"\beval\(", r"new Function"]
FILES = sorted(path for path in STATIC.iterdir() if path.suffix in (".js", ".css", ".html"))


def found(patterns, text):
    """The pieces of `text` that a pattern finds outside comments."""
    code = re.sub(r"/\*.*?\*/|(?<![:\"'`])//[^\n]*|<!--.*?-->", "", text, flags=re.S)
    return [match[0] for pattern in patterns for match in re.finditer(pattern, code, re.M)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_of_the_page_is_plain_and_its_own(path):
    text = path.read_text()
    assert found(TOO_NEW.get(path.suffix[1:], []), text) == []
    assert found(FROM_OUTSIDE, text) == []
    assert not re.search(r"(src|href|from|import)[=( ]*[\"'](https?:)?//", text)
    assert "SPDX-License-Identifier: Apache-2.0" in text[:120]
    assert len(text.splitlines()) < 400


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("js", "a ??= 1"),
        ("js", "x.replaceChildren()"),
        ("css", "p { display: flex; gap: 2px }"),
        ("css", "p { inset: 0 }"),
    ],
)
def test_what_is_too_new_is_found(kind, text):
    assert found(TOO_NEW[kind], text)


def test_every_view_has_its_module_and_its_styles():
    page = (STATIC / "index.html").read_text()
    names = re.findall(r'{ name: "(\w+)"', (STATIC / "console.js").read_text())
    assert names
    for name in names:
        assert "export function mount(root)" in (STATIC / f"view_{name}.js").read_text()
        assert Path(STATIC / f"view_{name}.css").exists()
        assert f'href="static/view_{name}.css"' in page
