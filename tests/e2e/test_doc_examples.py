"""The Python examples of README and docs run as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from client_rig import ALICE, Gateway

REPOSITORY = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.docker


@pytest.mark.parametrize("page", ["README.md", "docs/python-client.md"])
def test_the_examples_run(page: str, gateway: Gateway) -> None:
    blocks = BLOCK.findall((REPOSITORY / page).read_text())
    assert blocks
    program = "\n".join(blocks).replace("http://127.0.0.1:8000", gateway.url)
    environment = {**os.environ, "CELLBLOCK_URL": gateway.url, "CELLBLOCK_TOKEN": ALICE}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
