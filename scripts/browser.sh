#!/usr/bin/env bash
# Sees to it that the tests find Chromium, in which they use JupyterLab as a person does. Does nothing when it is there.
# On Debian, as root, it installs Debian's; elsewhere it says what is missing, and status 3 says so to a program. (Ubuntu
# has it as a snap alone, which does not start inside containers.)
set -euo pipefail

if command -v chromium >/dev/null; then
    exit 0
fi
if [[ $(id -u) -ne 0 ]] || ! grep -qs '^ID=debian$' /etc/os-release; then
    echo "NO CHROMIUM: install it (on Debian: sudo apt-get install chromium), so that it is run by that name." >&2
    exit 3
fi
echo "Installing Chromium, for the tests of JupyterLab (about 80 MB)"
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends chromium
