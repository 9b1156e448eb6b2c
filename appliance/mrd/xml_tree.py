# SPDX-License-Identifier: Apache-2.0
"""XML from a peer to a tree, safely: no DTD, so no entities; bounded depth and element count."""

from __future__ import annotations

from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from appliance.errors import PeerError

_DEEPEST = 32  # the MRD schema nests 6
_MOST_ELEMENTS = 100_000


def parse_xml(data: bytes, what: str) -> Element:
    """Return the root element, namespaces dropped. Raises PeerError naming `what`, never quoting the content."""
    builder = TreeBuilder()
    depth = n_elements = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth, n_elements
        depth, n_elements = depth + 1, n_elements + 1
        if depth > _DEEPEST or n_elements > _MOST_ELEMENTS:
            raise PeerError(f"{what}: XML nested deeper than {_DEEPEST} or with more than {_MOST_ELEMENTS} elements")
        builder.start(tag.rpartition(" ")[2], attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag.rpartition(" ")[2])

    def refuse(*_: object) -> None:
        raise PeerError(f"{what}: XML with a document type (DTD) is refused; send it without <!DOCTYPE>")

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        fault = expat.ErrorString(error.code)
        raise PeerError(f"{what}: not well-formed XML, line {error.lineno}: {fault}") from error
    except (ValueError, LookupError) as error:  # an encoding that Python does not know
        raise PeerError(f"{what}: XML in an unknown character encoding; use UTF-8") from error
    return builder.close()
