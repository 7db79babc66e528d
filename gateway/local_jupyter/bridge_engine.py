"""Where a bridge's container comes from: configuration, engine, and the clean-up after bridges that were killed.

What happens in the container is bridge.py's business. It keeps no state. Only the engine that is chosen is imported:
somebody waits for the kernel.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from msgspec.structs import replace

from gateway.config import loader
from gateway.config.loader import Config
from gateway.host.data_dir import environments_in
from gateway.local_jupyter import workspace
from gateway.local_jupyter.workspace import Workspace
from sessions.errors import EngineUnavailable
from sessions.ports import Provisioner

if TYPE_CHECKING:
    from sessions.provisioners.docker.engine import DockerEngine

log = structlog.get_logger()


def load_config(path: Path | None, environ: Mapping[str, str]) -> Config:
    """The configuration that the kernelspec names, or the environment does.

    Never ./config.yaml: a notebook's directory may hold one of another program's. Raises Misconfigured.
    """
    if path is None and not environ.get(loader.FILE_VARIABLE):
        path = Path(os.devnull)
    return loader.load(path, environ)


async def choose_engine(config: Config, own: Workspace) -> Provisioner:
    """The engine of the configuration. Only a file that says so has kernels that nothing isolates.

    Raises EngineUnavailable, Misconfigured, SetUpFailed.
    """
    if config.engine.name == "process":
        from sessions.provisioners.process.provisioner import ProcessProvisioner

        return ProcessProvisioner(own.gateway_id, own.kernels, _python(config))
    from sessions.provisioners.docker.engine import DockerEngine
    from sessions.provisioners.docker.provisioner import DockerProvisioner

    engine = DockerEngine(threads=2)
    try:
        tag = await _kernel_image(config, engine)
    except BaseException:
        await engine.close()
        raise
    settings = replace(config.engine, name="docker", kernel_image=tag)
    return DockerProvisioner(own.gateway_id, settings, engine)


def _python(config: Config) -> Path:
    """The environment that `cellblock kernelspec install` or `cellblock serve` has made; else this very Python."""
    own = Path(sys.executable)
    if not config.build.dependencies:
        return own
    from sessions.provisioners.process.environment import find_environment

    found = find_environment(config.build, environments_in(config.data_dir(os.environ)))
    if found is None:
        log.warning(
            "environment_missing", consequence="`cellblock kernelspec install` makes it; no packages until then"
        )
    return found or own


async def _kernel_image(config: Config, engine: DockerEngine) -> str:
    """The tag of the image. Raises as `choose_engine` does: nothing is built while somebody waits for a kernel."""
    if not (await engine.facts()).shares_host:
        raise EngineUnavailable("The Docker engine is on another machine, whose containers cannot reach this one.")
    from sessions.provisioners.image.build import find_kernel_image

    tag = await find_kernel_image(config.build, engine, named=config.engine.kernel_image)
    if tag is None:
        raise EngineUnavailable("The kernel image is not there: run `cellblock build`, then try again.")
    return tag


async def remove_abandoned(config: Config) -> None:
    """Remove what bridges of this user that were killed have left. Their containers end by themselves, soon."""
    for left in workspace.take_over_abandoned():
        provisioner = _provisioner_of(left, config)
        try:
            for kernel_id in await provisioner.list():
                await provisioner.kill(kernel_id)
        except EngineUnavailable as error:
            log.warning("leftovers_not_removed", path=str(left.path), reason=str(error))
            left.release()
        else:
            left.remove()
        finally:
            await provisioner.close()


def _provisioner_of(left: Workspace, config: Config) -> Provisioner:
    if left.kernels.exists():
        from sessions.provisioners.process.provisioner import ProcessProvisioner

        return ProcessProvisioner(left.gateway_id, left.kernels)
    from sessions.provisioners.docker.provisioner import DockerProvisioner

    return DockerProvisioner(left.gateway_id, config.engine)
