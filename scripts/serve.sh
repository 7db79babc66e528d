#!/usr/bin/env bash
# Starts the gateway from .venv. Where the configuration wants Docker, or leaves it open, and none answers, it first has
# scripts/docker_engine.py bring and start an engine; where that is not ours to do, the gateway says what it does instead.
# An attempt that failed takes minutes, so it is made once: .venv/no-docker remembers it until an engine answers.
set -euo pipefail
cd "$(dirname "$0")/.."

failed=.venv/no-docker
engine=$(.venv/bin/python -c 'import os
from gateway.config.loader import load
print(load(None, os.environ).engine.name)' 2>/dev/null || true) # what is wrong with the configuration, serve says
if [[ $engine == auto || $engine == docker ]]; then
    if .venv/bin/python scripts/docker_engine.py answers; then
        rm -f "$failed"
    elif [[ -e $failed ]]; then
        echo "No Docker engine answers, and an earlier attempt to start one failed. To try again: rm $failed"
        echo "Set engine.name: process (or CELLBLOCK_ENGINE_NAME=process) to skip this."
    else
        echo "No Docker engine answers. Set engine.name: process (or CELLBLOCK_ENGINE_NAME=process) to skip this."
        status=0
        .venv/bin/python scripts/docker_engine.py start || status=$? # it has said why; 3: there was nothing to try
        if [[ $status -ne 0 && $status -ne 3 ]]; then
            touch "$failed"
        fi
    fi
fi
exec .venv/bin/cellblock serve
