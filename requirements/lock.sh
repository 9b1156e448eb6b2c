#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Locks every dependency set with hashes, for Python 3.11 to 3.13. Needs uv. Add --upgrade for newer versions.
set -euo pipefail
cd "$(dirname "$0")/.."
export UV_CUSTOM_COMPILE_COMMAND="requirements/lock.sh"

lock() { # lock NAME OPTION...
    local name=$1
    shift
    uv pip compile --quiet pyproject.toml --universal --python-version 3.11 --generate-hashes "$@" \
        -o "requirements/$name.txt" >/dev/null
}

lock base --extra build "$@"
lock dev --extra build --extra dev -c requirements/base.txt "$@"
lock radiomics --extra radiomics -c requirements/base.txt "$@"
# torch pins an older CUDA runtime than the appliance runs with: a training environment is its own.
lock train --extra train "$@"
# TensorRT's libraries are not on PyPI (there is only a package that downloads them from elsewhere while it is
# built), so they have no hash to lock; docs/install.md says how to add them.
lock gpu --extra gpu -c requirements/base.txt --no-emit-package tensorrt --no-emit-package tensorrt-cu13 \
    --no-emit-package tensorrt-cu13-libs --no-emit-package tensorrt-cu13-bindings "$@"
