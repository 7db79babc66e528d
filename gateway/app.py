"""The composition root: the only place that names concrete adapters, starts them in order and ends them in reverse.

It decides nothing about runs, and holds no state of its own beyond the stack of what was started.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog
from msgspec.structs import replace
from rich.console import Console

from gateway.auth import StoredTokens
from gateway.config.loader import Config
from gateway.console import greet, showing_progress, warn_of_missing_packages
from gateway.doctor import examine as doctor
from gateway.doctor.database import DatabaseFacts
from gateway.doctor.findings import Finding
from gateway.host.bound_sockets import BoundSockets
from gateway.host.clock import SystemClock
from gateway.host.data_dir import DataDir, environments_in
from gateway.host.descriptors import MOST_CONNECTIONS, connections_within, descriptor_limit, raise_descriptor_limit
from gateway.host.memory import return_free_memory, return_large_blocks
from gateway.host.packages import is_installed
from gateway.host.service_manager import ServiceManager
from gateway.host.stop_signals import StopSignals
from gateway.http.base.context import Context
from gateway.http.base.limits import HttpBounds
from gateway.http.server import BoundedServer, make_server
from gateway.http.status_page.history import History
from gateway.store.embedded.postgres import EmbeddedPostgres
from gateway.store.engine import parse_url
from gateway.store.migrate import known_revisions, migrate, shape_of
from gateway.store.postgres import PostgresStore
from gateway.store.retention import remove_expired_runs
from gateway.store.tokens import TokenStore
from gateway.supervisors import SupervisorSwitchboard
from sessions.concurrency import BackgroundTasks
from sessions.environment import Environment
from sessions.errors import EngineUnavailable, Misconfigured, SetUpFailed, StoreUnavailable
from sessions.model import GatewayId
from sessions.ports import Provisioner
from sessions.provisioners.process.environment import ensure_environment, remove_unused
from sessions.provisioners.process.provisioner import ProcessProvisioner
from sessions.service import Service
from sessions.settings import BuildSettings
from sessions.wiring import Wiring

DRAIN_TIMEOUT_S = 30.0
"""How long runs in flight may take after SIGTERM. A second signal ends the waiting."""

_LAST_ANSWERS_S = 5.0
_DOCKER_PATIENCE_S = 10.0
_log = structlog.get_logger("cellblock.app")


@dataclass(frozen=True, slots=True)
class ChosenEngine:
    """What runs will run on: the kernel image of Docker's, or the Python environment of the process engine, if any."""

    provisioner: Provisioner
    kernel_image: str = ""
    python: Path | None = None


async def serve(config: Config, environ: Mapping[str, str], console: Console) -> None:
    """Run the gateway until a signal ends it. Raises SetUpFailed, Misconfigured, EngineUnavailable."""
    signals = StopSignals()
    task = asyncio.ensure_future(_serve(config, environ, console, signals))
    signals.install(task)
    try:
        await task
    except asyncio.CancelledError:
        if not signals.stop.is_set():
            raise


async def _serve(config: Config, environ: Mapping[str, str], console: Console, signals: StopSignals) -> None:
    async with AsyncExitStack() as stack:
        data_dir = DataDir.open(config.data_dir(environ))
        stack.callback(data_dir.release)
        sockets = BoundSockets.bind(config.server.host, config.server.port)
        stack.callback(sockets.close)
        database_url, database_name = await _start_database(config, data_dir.path, stack)
        store = PostgresStore(database_url)
        stack.push_async_callback(store.close)
        gateway_id = data_dir.gateway_id()
        chosen = await _choose_engine(config, gateway_id, data_dir, console)
        stack.push_async_callback(chosen.provisioner.close)
        switchboard = SupervisorSwitchboard(data_dir.sockets, config.limits.message_bytes)
        clock = SystemClock()
        service = Service(
            Wiring.build(
                Environment(
                    store=store,
                    provisioner=chosen.provisioner,
                    switchboard=switchboard,
                    gateway_id=gateway_id,
                    limits=config.limits,
                    preload=config.build.preload,
                    credential_of=data_dir.credential_of,
                    clock=clock,
                ),
                config.pool,
                config.languages,
            ),
            config.sessions,
        )
        context = Context(service, config, _http_bounds(config))
        tokens = TokenStore(store)
        context.authenticator.set_stored(await tokens.stored())
        history = History(context, clock)
        server = make_server(context, history)
        # On shutdown: no new connections, then the service ends what still runs, then the last answers go out.
        stack.push_async_callback(_close_connections, server, context)
        stack.push_async_callback(service.close)
        await service.start()
        if chosen.python is not None:
            await remove_unused(environments_in(data_dir.path), chosen.python)
        jobs = BackgroundTasks("the gateway")
        stack.push_async_callback(jobs.cancel)
        jobs.spawn(return_free_memory())
        jobs.spawn(history.follow())
        jobs.spawn(tokens.follow(context.set_stored_tokens))
        if config.retention.days:
            jobs.spawn(remove_expired_runs(store, clock, days=config.retention.days))
        raise_descriptor_limit()
        return_large_blocks()
        _spare_the_collector()
        stack.callback(server.stop)
        server.add_sockets(sockets.listen())
        manager = ServiceManager(environ)
        jobs.spawn(manager.follow(service.readiness))
        data_dir.tell_address(_listening_url(config, sockets.port))
        greet(
            console,
            engine=chosen.provisioner.name,
            kernel_image=chosen.kernel_image,
            database=database_name,
            url=_own_url(config, sockets.port),
            token_required=context.authenticator.is_required,
        )
        signals.serving.set()
        await signals.stop.wait()
        manager.stopping()
        _log.info("draining", timeout_s=DRAIN_TIMEOUT_S)
        await _drain(service, context, signals)
        _log.debug("run_stages", **service.stages.as_json())
    _log.info("stopped")


@asynccontextmanager
async def stored_tokens(config: Config, environ: Mapping[str, str]) -> AsyncIterator[TokenStore]:
    """The tokens in the database, which is made where there is none. Raises SetUpFailed, StoreUnavailable."""
    async with AsyncExitStack() as stack:
        url = await _shared_database_url(config, config.data_dir(environ), stack)
        await _migrate(url)
        store = PostgresStore(url)
        stack.push_async_callback(store.close)
        yield TokenStore(store)


async def migrate_database(config: Config, environ: Mapping[str, str]) -> bool:
    """Bring the database to the current shape; returns whether there was something to do. Raises SetUpFailed."""
    async with AsyncExitStack() as stack:
        return await _migrate(await _shared_database_url(config, config.data_dir(environ), stack))


async def examine(config: Config, environ: Mapping[str, str]) -> list[Finding]:
    """Look at everything that could keep code from running safely here; changes nothing. See `gateway.doctor`."""
    data_dir = config.data_dir(environ)

    async def look() -> DatabaseFacts:
        async with AsyncExitStack() as stack:
            url = await _shared_database_url(config, data_dir, stack)
            shape = await asyncio.to_thread(shape_of, url)
            stored = StoredTokens()
            if shape.revision == known_revisions()[-1]:
                store = PostgresStore(url)
                stack.push_async_callback(store.close)
                stored = await TokenStore(store).stored()
            return DatabaseFacts(
                server_version=shape.server_version,
                encoding=shape.encoding,
                max_connections=shape.max_connections,
                revision=shape.revision,
                known_revisions=known_revisions(),
                now=shape.now,
                valid_tokens=len(stored.valid),
                ever_tokens=stored.ever,
            )

    is_there = bool(config.database.url)
    with suppress(OSError):  # what is wrong with the data directory is a finding of its own
        is_there = is_there or EmbeddedPostgres(data_dir).pg_dir.exists()
    return await doctor.examine(config, data_dir, look if is_there else None)


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """A kernel image that the engine has, and what it took to have it."""

    tag: str
    is_new: bool
    took_s: float
    size_bytes: int


async def build_image(settings: BuildSettings, console: Console, *, rebuild: bool = False) -> BuiltImage:
    """Build the kernel image unless it is there. Raises SetUpFailed, EngineUnavailable."""
    from sessions.provisioners.image.build import ensure_kernel_image, size_of

    began_s = time.monotonic()
    is_new = False
    with showing_progress(console, "Kernel image") as progress:

        def note(line: str) -> None:
            nonlocal is_new
            is_new = True
            progress(line)

        tag = await ensure_kernel_image(settings, note, rebuild=rebuild)
    return BuiltImage(tag, is_new, time.monotonic() - began_s, await size_of(tag))


async def make_environment(settings: BuildSettings, data_dir: Path, console: Console) -> Path:
    """Make the Python environment of the process engine's kernels unless it is there. Raises SetUpFailed."""
    with showing_progress(console, "Python packages") as progress:
        return await ensure_environment(settings, environments_in(data_dir), progress)


async def _choose_engine(config: Config, gateway_id: GatewayId, data_dir: DataDir, console: Console) -> ChosenEngine:
    """The configured engine; `auto` is docker where it answers, else process. Raises EngineUnavailable, SetUpFailed."""
    name = config.engine.name
    if name == "auto":
        name = "docker" if await _docker_answers() else "process"
    if name == "process":
        if not config.is_loopback:
            raise Misconfigured(
                "No Docker engine answers, and without one nothing is isolated, so that Cellblock listens on loopback "
                "only: start Docker, or set `server.host` to 127.0.0.1."
            )
        python = await _process_environment(config.build, data_dir.path, console)
        plain = ProcessProvisioner(gateway_id, data_dir.kernels, python or Path(sys.executable))
        return ChosenEngine(plain, python=python)
    from sessions.provisioners.docker.engine import DockerEngine
    from sessions.provisioners.docker.host_paths import find_host_paths
    from sessions.provisioners.docker.provisioner import DockerProvisioner

    kernel_image = config.engine.kernel_image or (await build_image(config.build, console)).tag
    settings = replace(config.engine, name="docker", kernel_image=kernel_image)
    engine = DockerEngine()
    try:
        paths = await find_host_paths(engine, data_dir.path, kernel_image, gateway_id)
    except BaseException:
        await engine.close()
        raise
    provisioner = DockerProvisioner(gateway_id, settings, engine, zygote_dir=data_dir.zygote, host_paths=paths)
    return ChosenEngine(provisioner, kernel_image)


async def _process_environment(build: BuildSettings, data_dir: Path, console: Console) -> Path | None:
    """The interpreter with the packages of `build.dependencies`; None where kernels do with what the gateway has.

    Without a network they do, unless the operator has named packages or versions: SetUpFailed is raised then.
    """
    if not build.dependencies:
        return None
    try:
        return await make_environment(build, data_dir, console)
    except SetUpFailed as error:
        if build.constraints or build.dependencies != BuildSettings().dependencies:
            raise
        missing = [name for name in build.dependencies if not is_installed(name)]
        _log.warning("packages_not_installed", missing=missing, reason=str(error))
        if missing:
            warn_of_missing_packages(console, missing, sys.executable)
        return None


async def _docker_answers() -> bool:
    """Whether there is an engine whose containers can reach our sockets."""
    from sessions.provisioners.docker.engine import DockerEngine

    engine = DockerEngine(threads=1, timeout_s=_DOCKER_PATIENCE_S)
    try:
        return (await engine.facts()).shares_host
    except EngineUnavailable:
        return False
    finally:
        await engine.close()


async def _shared_database_url(config: Config, data_dir: Path, stack: AsyncExitStack) -> str:
    """The database for a command that may run beside a gateway: the embedded one is joined, or started for a while."""
    if config.database.url:
        return config.database.url
    embedded = EmbeddedPostgres(data_dir)
    stack.push_async_callback(asyncio.to_thread, embedded.stop)
    return await asyncio.to_thread(embedded.start)


async def _start_database(config: Config, data_dir: Path, stack: AsyncExitStack) -> tuple[str, str]:
    """The URL of the database, which is migrated, and its name for the start-up summary."""
    if config.database.url:
        url = config.database.url
        name = parse_url(url).render_as_string(hide_password=True)
    else:
        embedded = EmbeddedPostgres(data_dir, exclusive=True)
        # Pushed first: a start that is cancelled goes on in its thread, and `stop` waits for it.
        stack.push_async_callback(asyncio.to_thread, embedded.stop)
        url = await asyncio.to_thread(embedded.start)
        name = f"embedded PostgreSQL in {embedded.pg_dir}"
    await _migrate(url)
    return url, name


async def _migrate(url: str) -> bool:
    try:
        return await asyncio.to_thread(migrate, url)
    except StoreUnavailable as error:
        if type(error) is not StoreUnavailable:
            raise SetUpFailed(f"{str(error).partition(';')[0]}: mend that, or correct `database.url`.") from error
        raise SetUpFailed(
            "The database does not answer: start it, or correct `database.url` (empty means the embedded one)."
        ) from error


async def _drain(service: Service, context: Context, signals: StopSignals) -> None:
    """Let runs in flight end, until the time is over or a second signal arrives."""
    draining = asyncio.ensure_future(service.drain(DRAIN_TIMEOUT_S))
    hurried = asyncio.ensure_future(signals.hurry.wait())
    try:
        await asyncio.sleep(0)  # from here on nobody is let in
        context.http.streams.end_early()
        await asyncio.wait({draining, hurried}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        hurried.cancel()
        draining.cancel()
        with suppress(asyncio.CancelledError):
            await draining


async def _close_connections(server: BoundedServer, context: Context) -> None:
    """Let the last answers out, end streams and WebSockets, whose runs go on elsewhere, then close what is left."""
    await context.http.streams.close_all()
    await context.http.in_flight.wait_for_none(_LAST_ANSWERS_S)
    await server.close_all_connections()


def _http_bounds(config: Config) -> HttpBounds:
    """No more connections than there will be descriptors for."""
    limit = descriptor_limit()
    connections = connections_within(limit, config.pool.max)
    if connections < MOST_CONNECTIONS:
        _log.warning("few_descriptors", limit=limit, connections=connections, usual_connections=MOST_CONNECTIONS)
    return HttpBounds.within(connections)


def _spare_the_collector() -> None:
    """Exempt the long-lived objects of the start-up: collecting through them would delay an answer by 25 ms."""
    gc.collect()
    gc.freeze()


def _own_url(config: Config, port: int) -> str:
    if config.server.public_url:
        return config.server.public_url.rstrip("/")
    return _listening_url(config, port)


def _listening_url(config: Config, port: int) -> str:
    host = config.server.host.strip("[]")
    if host in ("", "0.0.0.0", "::"):  # noqa: S104 - shown, not bound
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
