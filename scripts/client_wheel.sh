#!/usr/bin/env bash
# Builds the wheel of the Python client by itself: `client_wheel.sh [DIRECTORY]`, into dist/ unless one is given. PYTHON is
# an interpreter with pip. See packaging/client/pyproject.toml.
set -euo pipefail
target=$(realpath -m "${1:-$(dirname "$0")/../dist}")
cd "$(dirname "$0")/.."

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir "$stage/gateway"
cp packaging/client/pyproject.toml docs/python-client.md LICENSE "$stage"
cp gateway/__init__.py gateway/addresses.py gateway/py.typed "$stage/gateway"
mkdir "$stage/gateway/client"
cp gateway/client/*.py "$stage/gateway/client"
"${PYTHON:-.venv/bin/python}" -m pip wheel --disable-pip-version-check --quiet --no-deps -w "$target" "$stage"
