"""From the bodies of Jupyter's REST API to what is asked of the service. Pure. Unknown fields mean nothing here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from gateway.http.jupyter.models import language_of
from gateway.http.parse.body import fields_of
from sessions.errors import InvalidRequest
from sessions.notebook_sessions import KernelChoice

_MAX_CHARACTERS = {"path": 4096, "name": 1024, "type": 128}


class KernelFields(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of `POST /api/kernels`. `path` and `env` are for a server's own directories and processes."""

    name: str | None = None
    """A kernelspec's name, or a language's; Python unless given."""
    path: str | None = None
    """Not used: each kernel is in a directory of its own."""
    kernel_id: str | None = None
    """An id of your choice: five words of letters, digits and `_`, with hyphens between them, like a UUID."""
    env: dict[str, str] | None = None
    """Not used: kernels are started before anybody asks for them."""


class KernelFieldsOfSession(msgspec.Struct, frozen=True, kw_only=True):
    """The field `kernel` of a session."""

    id: str | None = None
    """A kernel that is there."""
    name: str | None = None
    """The kernelspec of a new one."""


class NotebookFields(msgspec.Struct, frozen=True, kw_only=True):
    """The field `notebook` of a session, as old clients have it."""

    path: str | UnsetType = UNSET
    """The path of the session."""
    name: str | UnsetType = UNSET
    """The path as well; it counts before `path` when a session is opened."""


class JupyterSessionFields(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of `POST /api/sessions` and `PATCH /api/sessions/{id}`."""

    path: str | UnsetType = UNSET
    """Where the notebook is, for the client. Needed to open a session."""
    name: str | UnsetType | None = UNSET
    """What the client calls it."""
    type: str | UnsetType = UNSET
    """`notebook`, `console` or another. Needed to open a session."""
    kernel: KernelFieldsOfSession | None = None
    """Its kernel; a new one for Python unless given."""
    notebook: NotebookFields | None = None
    """Path and type `notebook` at once, as old clients send them."""


def kernel_choice(model: Mapping[str, Any] | None, languages: Mapping[str, str]) -> tuple[KernelChoice, str]:
    """The kernel to start, and what the client called it. Raises InvalidRequest."""
    fields = fields_of(KernelFields, model or {})
    return KernelChoice(fields.kernel_id, language_of(fields.name, languages)), fields.name or ""


def opened_session(
    model: Mapping[str, Any] | None, languages: Mapping[str, str]
) -> tuple[dict[str, Any], KernelChoice, str]:
    """Path, name and type of a session to open, its kernel, and what the client called that. Raises InvalidRequest."""
    fields = _session_fields(model)
    given = _given(fields, fields.notebook.name if fields.notebook is not None else UNSET)
    for name in ("path", "type"):
        if name not in given:
            raise InvalidRequest(f"Missing field in JSON data: {name}")
    kernel = fields.kernel or KernelFieldsOfSession()
    choice = KernelChoice(kernel.id or None, language_of(kernel.name, languages))
    return given, choice, kernel.name or ""


def changed_session(
    model: Mapping[str, Any] | None, languages: Mapping[str, str]
) -> tuple[dict[str, Any], KernelChoice | None, str]:
    """The changes of a session, as `opened_session` has them; a kernel's id counts before its name."""
    fields = _session_fields(model)
    given, kernel = _given(fields, UNSET), fields.kernel
    if kernel is None or (kernel.id is None and kernel.name is None):
        return given, None, ""
    return given, KernelChoice(kernel.id, language_of(kernel.name, languages)), kernel.name or ""


def _session_fields(model: Mapping[str, Any] | None) -> JupyterSessionFields:
    if model is None:
        raise InvalidRequest("No JSON data provided")
    return fields_of(JupyterSessionFields, model)


def _given(fields: JupyterSessionFields, name_of_notebook: str | UnsetType) -> dict[str, Any]:
    """What is given of `path`, `name` and `type`; a `notebook` says the first and the last."""
    given = {"path": fields.path, "name": fields.name, "type": fields.type}
    if fields.notebook is not None:
        path = fields.notebook.path if name_of_notebook is UNSET else name_of_notebook
        if path is not UNSET:
            given["path"], given["type"] = path, "notebook"
    changes: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, UnsetType):
            continue
        if value is not None and len(value) > _MAX_CHARACTERS[name]:
            raise InvalidRequest(f'"{name}" must not have more than {_MAX_CHARACTERS[name]} characters.')
        changes[name] = value
    return changes
