"""Of the gateway to be: its data directory, its port, and who is let in."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from gateway.config.sections import Config
from gateway.doctor.database import DatabaseFacts
from gateway.doctor.findings import Finding, Level
from gateway.host.bound_sockets import BoundSockets
from gateway.host.data_dir import check_path_length, present_holder
from sessions.errors import Misconfigured, SetUpFailed


def look_at_data_dir(path: Path) -> Finding:
    """Whether a gateway can use this directory, which need not be there yet."""
    what_to_do = "Give it to the user that runs the gateway, or set `server.data_dir` to another one."
    try:
        check_path_length(path)
        there = next(place for place in (path, *path.parents) if place.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            return Finding("data directory", Level.FAIL, f"{path} cannot be written", what_to_do)
    except Misconfigured as error:
        return Finding("data directory", Level.FAIL, str(error), "Set `server.data_dir` to a shorter path.")
    except OSError as error:
        return Finding("data directory", Level.FAIL, f"{path} cannot be used ({error.strerror})", what_to_do)
    holder = present_holder(path)
    used_by = "" if holder is None else f", used by the gateway with process id {holder.pid}"
    return Finding("data directory", Level.OK, f"{path}{used_by}")


def look_at_port(config: Config, data_dir: Path) -> Finding:
    """Whether the port is free, or the gateway's that uses this data directory."""
    host, port = config.server.host, config.server.port
    holder = present_holder(data_dir)
    if holder is not None and holder.url:
        return Finding("port", Level.OK, f"the gateway listens at {holder.url}")
    try:
        BoundSockets.bind(host, port).close()
    except SetUpFailed as error:
        cause = error.__cause__
        is_taken = isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE
        return Finding("port", Level.WARN if is_taken else Level.FAIL, str(error), "Set `server.port` to another one.")
    return Finding("port", Level.OK, f"{host}, port {port or '0: one that is free'}{'' if not port else ' is free'}")


def token_finding(config: Config, facts: DatabaseFacts | None) -> Finding:
    """Whether who should be let in is, and nobody else. Pure."""
    stored = facts.valid_tokens if facts is not None else 0
    has_any = bool(config.auth.tokens) or (facts is not None and facts.ever_tokens)
    is_required = has_any if config.auth.required is None else config.auth.required
    create = "Make one with `cellblock token create`."
    if is_required and not config.auth.tokens and not stored:
        return Finding("tokens", Level.WARN, "Requests need a token, and there is none: all are refused", create)
    if is_required:
        return Finding("tokens", Level.OK, f"required; {len(config.auth.tokens)} configured, {stored} in the database")
    if config.server.public_url or config.server.allowed_hosts:
        what = "No token is needed, and a proxy seems to let others in: all of them may run code"
        return Finding("tokens", Level.WARN, what, create)
    return Finding("tokens", Level.OK, "none needed: only this machine is listened to")
