#!/usr/bin/env bash
# Puts Cellblock into .venv, and the extras that are named: `setup.sh [dev] [clients]`. Does nothing that is done already.
# On Debian and Ubuntu, as root, it installs the one package that venv needs there; elsewhere it says what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

# One at a time: `make -j check test-fast` would have pip twice in the same environment. The lock is on this file, for
# .venv may not be there yet, and `--clear` would remove one in it.
exec 9<scripts/setup.sh
if ! flock -n 9; then
    echo "Waiting for another setup of .venv"
    flock 9
fi

missing=()
for set in runtime "$@"; do
    stamp=.venv/installed-$set
    if [[ ! -f $stamp || pyproject.toml -nt $stamp || constraints.txt -nt $stamp || scripts/setup.sh -nt $stamp ]]; then
        missing+=("$set")
    fi
done
if ((${#missing[@]} == 0)); then
    exit 0
fi

python=""
for candidate in ${PYTHON:-} python3.13 python3.12 python3.11 python3; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [[ -z $python ]]; then
    echo "Cellblock needs Python 3.11 or newer, and none was found: install it, or name it with PYTHON=/path/to/python3." >&2
    exit 1
fi

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    package="python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
    if [[ $(id -u) -eq 0 ]] && command -v apt-get >/dev/null; then
        echo "Installing $package, which Debian keeps apart from Python"
        apt-get update -q
        DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$package"
    else
        echo "$python has no venv module: install it (on Debian or Ubuntu: sudo apt-get install $package)." >&2
        exit 1
    fi
fi

echo "Installing Cellblock (${missing[*]}) into .venv with $("$python" --version)"
if ! .venv/bin/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    "$python" -m venv --clear .venv
fi
extras=$(IFS=,; echo "$*")
.venv/bin/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e ".${extras:+[$extras]}"
for set in "${missing[@]}"; do
    touch ".venv/installed-$set"
done
echo "Installed: .venv/bin/cellblock"
