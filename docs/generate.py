# SPDX-License-Identifier: Apache-2.0
"""Write what is generated from the settings: config/example.yaml and the reference in docs/configure.md."""

from __future__ import annotations

from pathlib import Path

from appliance import describe_settings

ROOT = Path(__file__).parents[1]
START = "<!-- from here on written by docs/generate.py -->\n"


def documents() -> dict[Path, str]:
    """Return the generated files and what should stand in them."""
    configure = ROOT / "docs" / "configure.md"
    by_hand, _, _ = configure.read_text().partition(START)
    return {
        ROOT / "config" / "example.yaml": describe_settings.example(),
        configure: by_hand + START + "\n" + describe_settings.reference(),
    }


if __name__ == "__main__":
    for path, text in documents().items():
        path.write_text(text)
