"""The gateway of examples that need no packages: without containers, whose start takes longer, and without tokens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import serve_rig
from client_rig import short_directory
from store_fixtures import copy_template_data_dir


@pytest.fixture(scope="session")
def plain_gateway() -> Iterator[serve_rig.Gateway]:
    with short_directory() as directory:
        copy_template_data_dir(directory / "d")
        gateway = serve_rig.fork(directory / "d", CELLBLOCK_AUTH_TOKENS="[]", CELLBLOCK_POOL_SIZE="2")
        try:
            yield gateway
        finally:
            gateway.process.terminate()
            gateway.process.wait(serve_rig.PATIENCE_S)
