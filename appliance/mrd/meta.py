# SPDX-License-Identifier: Apache-2.0
"""Image meta attributes: names with one or more values, as XML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.etree.ElementTree import Element, SubElement, tostring

from appliance.mrd.xml_tree import parse_xml

Meta = Mapping[str, Sequence[str]]


def encode_meta(meta: Meta) -> bytes:
    """Return `meta` as XML (UTF-8). Characters that XML 1.0 cannot hold become '?'."""
    root = Element("ismrmrdMeta")
    for name, values in meta.items():
        entry = SubElement(root, "meta")
        SubElement(entry, "name").text = name
        for value in values:
            SubElement(entry, "value").text = "".join(c if c.isprintable() or c in "\t\n" else "?" for c in value)
    return bytes(tostring(root, encoding="utf-8", xml_declaration=True))


def parse_meta(xml: bytes) -> dict[str, list[str]]:
    """Return the attributes; empty for empty `xml`. Raises PeerError."""
    meta: dict[str, list[str]] = {}
    if xml:
        for entry in parse_xml(xml, "mrd image meta").iter("meta"):
            values = [value.text or "" for value in entry.findall("value")]
            meta.setdefault(entry.findtext("name", ""), []).extend(values)
    return meta
