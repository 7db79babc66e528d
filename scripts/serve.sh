#!/usr/bin/env bash
# Starts the gateway from .venv. Where the configuration wants Docker, or leaves it open, and none answers, it first has
# scripts/docker_engine.py bring and start an engine; where that is not ours to do, the gateway says what it does instead.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! .venv/bin/python scripts/docker_engine.py answers; then
    engine=$(.venv/bin/python -c 'import os
from gateway.config.loader import load
print(load(None, os.environ).engine.name)' 2>/dev/null || true)  # what is wrong with the configuration, serve says
    if [[ $engine == auto || $engine == docker ]]; then
        echo "No Docker engine answers."
        .venv/bin/python scripts/docker_engine.py start || true # it has said why; the gateway says what it does instead
    fi
fi
exec .venv/bin/cellblock serve
