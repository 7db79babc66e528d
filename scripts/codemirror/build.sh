#!/usr/bin/env bash
# Makes the editor's module anew, byte for byte, from the versions in package-lock.json: for whoever changes them. Needs
# Node 18 or newer and npm. The module, the licenses in it and its SHA-256 are committed; nobody else needs Node.
set -euo pipefail
cd "$(dirname "$0")"
target=../../gateway/http/pages/static/third_party
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cp package.json package-lock.json entry.js licenses.mjs "$work"
cd "$work"
npm ci --ignore-scripts --no-audit --no-fund --silent
npx --no-install esbuild entry.js --bundle --minify --format=esm --target=es2022 --charset=utf8 --legal-comments=none \
    --metafile=meta.json --log-level=warning --outfile=codemirror.js
node licenses.mjs meta.json >codemirror.licenses.txt
sha256sum codemirror.js >codemirror.js.sha256
cd - >/dev/null
mkdir -p "$target"
cp "$work"/codemirror.js "$work"/codemirror.licenses.txt "$work"/codemirror.js.sha256 "$target"
cat "$target/codemirror.js.sha256"
