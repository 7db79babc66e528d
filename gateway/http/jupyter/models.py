"""The JSON of Jupyter's REST API, as jupyter_server has it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import quote

from gateway.http.parse.run_request import DEFAULT_LANGUAGE
from gateway.http.parse.times import iso
from sessions.languages import traits_of
from sessions.model import SessionState, SessionView, TenantId
from sessions.notebook_sessions import Notebook

PYTHON = "python"


def kernel_model(view: SessionView) -> dict[str, Any]:
    """A kernel.

    One that is gone is "starting": the next client or run gets a fresh one, as when jupyter_server restarts a dead
    kernel. "dead" would mean that it was given up, and jupyter_server, as a client, deletes such kernels.
    """
    state = SessionState.STARTING if view.state is SessionState.DEAD else view.state
    return {
        "id": view.session.public_kernel_id,
        "name": view.kernel_name,
        "last_activity": iso(view.last_activity),
        "execution_state": state.value,
        "connections": view.connections,
    }


def session_model(notebook: Notebook) -> dict[str, Any]:
    """What Jupyter calls a session."""
    jupyter = notebook.jupyter
    model: dict[str, Any] = {**jupyter.as_json(), "kernel": kernel_model(notebook.kernel)}
    if jupyter.type == "notebook":
        model["notebook"] = {"path": jupyter.path, "name": jupyter.name}
    return model


def default_language(languages: Mapping[str, str]) -> str:
    """The language of a kernel for which the client names none."""
    return DEFAULT_LANGUAGE if DEFAULT_LANGUAGE in languages else next(iter(languages))


def language_of(name: str | None, languages: Mapping[str, str]) -> str | None:
    """The language of a kernelspec, or the language itself by its name; None where there is neither."""
    if not name:
        return default_language(languages)
    for language, kernel_name in languages.items():
        if kernel_name == name:
            return language
    folded = name.strip().lower()
    return folded if folded in languages else None


def kernelspecs(languages: Mapping[str, str], logos: Collection[str], base_path: str) -> dict[str, Any]:
    """All kernelspecs, by name; `logos` are the files that Python's have."""
    by_name: dict[str, dict[str, Any]] = {}
    for language, name in languages.items():
        by_name.setdefault(name, _kernelspec(language, name, logos if language == PYTHON else (), base_path))
    return by_name


def _kernelspec(language: str, name: str, logos: Collection[str], base_path: str) -> dict[str, Any]:
    """What the gateway knows of a kernelspec, which itself is in the kernel image."""
    traits = traits_of(name)
    return {
        "name": name,
        "spec": {
            "argv": [*traits.argv],
            "env": {},
            "display_name": traits.display_name,
            "language": language,
            "interrupt_mode": "signal",
            "metadata": {},
        },
        "resources": {
            file.rpartition(".")[0]: f"{base_path}/kernelspecs/{quote(name, safe='')}/{file}" for file in sorted(logos)
        },
    }


def identity_model(tenant: TenantId) -> dict[str, Any]:
    """Who a client is."""
    return {
        "username": tenant,
        "name": tenant,
        "display_name": tenant,
        "initials": tenant[:1].upper(),
        "avatar_url": None,
        "color": None,
    }
