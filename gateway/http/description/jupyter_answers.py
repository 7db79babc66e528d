"""The bodies of Jupyter's REST API, as types that only the description uses."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from gateway.http.description.answers import Time


class JupyterError(Struct):
    """What every refusal of a Jupyter route is."""

    message: str
    """A sentence for people."""
    reason: str | None
    """The `code` of our own errors; `null` where jupyter_server gives none."""


class KernelNotAvailable(Struct):
    """A kernelspec that is not there."""

    message: str
    """A sentence for people."""
    short_message: str
    """The same, shorter."""


class Version(Struct):
    """Which API this is."""

    version: str
    """That of the jupyter_server whose answers these are like."""


class Status(Struct):
    """What you have here."""

    started: Time
    """When the gateway was started."""
    last_activity: Time
    """When a kernel of yours did something last."""
    kernels: int
    """How many you have."""
    connections: int
    """How many clients are at them."""


class Identity(Struct):
    """Who you are."""

    username: str
    """Your tenant."""
    name: str
    """Your tenant."""
    display_name: str
    """Your tenant."""
    initials: str
    """Its first letter."""
    avatar_url: None
    """There is none."""
    color: None
    """There is none."""


class Me(Struct):
    """Who you are, and what you may do."""

    identity: Identity
    """Who you are."""
    permissions: dict[str, list[str]]
    """Of those that were asked for, the actions by resource."""


class KernelSpecFile(Struct):
    """What a kernelspec says."""

    argv: list[str]
    """The command that starts the kernel."""
    env: dict[str, str]
    """Its variables of the environment."""
    display_name: str
    """Its name for people."""
    language: str
    """Its language."""
    interrupt_mode: Literal["signal", "message"]
    """How it is interrupted."""
    metadata: dict[str, Any]
    """Nothing so far."""


class KernelSpec(Struct):
    """A kernelspec."""

    name: str
    """Its name."""
    spec: KernelSpecFile
    """What it says."""
    resources: dict[str, str]
    """Paths of its logos."""


class KernelSpecs(Struct):
    """All kernelspecs."""

    default: str
    """The one that a client gets that names none."""
    kernelspecs: dict[str, KernelSpec]
    """By name."""


class Kernel(Struct):
    """A kernel: a session, as Jupyter clients see it."""

    id: str
    """Its id. In paths, the `session_id` is understood too."""
    name: str
    """Its kernelspec."""
    last_activity: Time
    """When it did something last."""
    execution_state: Literal["starting", "idle", "busy"]
    """A kernel that is gone is `starting`: who uses it next gets a fresh one."""
    connections: int
    """How many clients are at it."""


class NotebookName(Struct):
    """A session of the type `notebook`, as old clients want it."""

    path: str
    """Its path."""
    name: str | None
    """Its name."""


class JupyterSession(Struct):
    """What Jupyter calls a session: which notebook has which kernel."""

    id: str
    """Its id."""
    path: str
    """The path of the notebook."""
    name: str | None
    """What the client calls it."""
    type: str
    """`notebook`, `console` or another."""
    kernel: Kernel
    """Its kernel, which other sessions may have too."""
    notebook: NotebookName | UnsetType = UNSET
    """Of the type `notebook` alone."""
