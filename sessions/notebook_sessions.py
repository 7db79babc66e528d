"""What Jupyter's REST API calls sessions: the path of a notebook, and the kernel that it has. A kernel has at most one.

Jupyter's kernels are our sessions, and its sessions are stored with them. How kernels are made, and where records are
written, is not decided here.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from sessions.concurrency import KeyedLock
from sessions.errors import InvalidRequest, NotFound, UnsupportedLanguage
from sessions.model import (
    JupyterSession,
    JupyterSessionId,
    SessionId,
    SessionRequest,
    SessionView,
    TenantId,
    can_name_a_kernel,
)
from sessions.service import Service
from sessions.settings import SessionLimits

_BAD_KERNEL_ID = "A kernel's id is five words of ASCII letters, digits and _, with hyphens between them: a UUID."


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """Which kernel a client wants: the one with this id, or else one of this language.

    `language` is None if the client named one that is not configured, which matters only if a kernel is made.
    """

    kernel_id: str | None
    language: str | None


class NotebookSessions:
    """The mutable state is a lock for each path that is being opened, and for each Jupyter session that is changed."""

    def __init__(self, service: Service, limits: SessionLimits) -> None:
        self._service = service
        self._limits = limits
        self._locks: KeyedLock[tuple[str, ...]] = KeyedLock()

    def __repr__(self) -> str:
        return f"<NotebookSessions {self._locks!r}>"

    def of_tenant(self, tenant: TenantId) -> list[SessionView]:
        """A tenant's kernels that have a Jupyter session, oldest first."""
        found: dict[JupyterSessionId, SessionView] = {}
        for view in self._service.list_sessions(tenant):
            if (jupyter := view.session.jupyter) is None:
                continue
            # After a move to another kernel, the old one has it too, until it is gone.
            known = found.get(jupyter.id)
            if known is None or known.session.jupyter_version < view.session.jupyter_version:
                found[jupyter.id] = view
        return list(found.values())

    def get(self, tenant: TenantId, jupyter_id: str) -> SessionView:
        """The kernel that has this Jupyter session. Raises NotFound."""
        for view in self.of_tenant(tenant):
            if view.session.jupyter is not None and view.session.jupyter.id == jupyter_id:
                return view
        raise NotFound("There is no Jupyter session by that id.")

    async def start_kernel(
        self, tenant: TenantId, choice: KernelChoice, jupyter: JupyterSession | None = None, version: int = 0
    ) -> SessionView:
        """Make a kernel, with the id of the choice or a new one.

        Raises UnsupportedLanguage, InvalidRequest, and what `Service.create_session` does.
        """
        if choice.language is None:
            raise UnsupportedLanguage
        if choice.kernel_id is not None and not can_name_a_kernel(choice.kernel_id):
            raise InvalidRequest(_BAD_KERNEL_ID)
        return await self._service.create_session(
            SessionRequest(
                tenant=tenant,
                session_id=SessionId(choice.kernel_id or str(uuid4())),
                language=choice.language,
                variables={},
                idle_timeout_s=self._limits.idle_timeout_s,
                max_lifetime_s=self._limits.max_lifetime_s,
                jupyter=jupyter,
                jupyter_version=version,
            )
        )

    async def open(
        self, tenant: TenantId, path: str, name: str | None, jupyter_type: str, choice: KernelChoice
    ) -> SessionView:
        """The Jupyter session of this path, whatever its kernel; else a new one, with the kernel chosen or a new.

        Raises Conflict when that kernel has another Jupyter session, and what `start_kernel` does.
        """
        async with self._locks.hold((tenant, "path", path)):
            for view in self.of_tenant(tenant):
                if view.session.jupyter is not None and view.session.jupyter.path == path:
                    return view
            jupyter = JupyterSession(JupyterSessionId(str(uuid4())), path, name, jupyter_type)
            if choice.kernel_id is not None:
                with suppress(NotFound):
                    found = self._service.session_of_kernel(tenant, choice.kernel_id)
                    return await self._service.name_for_jupyter(tenant, found.session.session_id, jupyter, 0)
            return await self.start_kernel(tenant, choice, jupyter, 1)

    async def change(
        self, tenant: TenantId, jupyter_id: str, changes: Mapping[str, Any], choice: KernelChoice | None
    ) -> SessionView:
        """Change its path, name or type; with a `choice`, move it to that kernel and end the one that it had.

        Raises NotFound, InvalidRequest when the kernel is unknown, Conflict when it has another, and what
        `start_kernel` does.
        """
        async with self._locks.hold((tenant, "id", jupyter_id)):
            before = self.get(tenant, jupyter_id)
            known, version = before.session.jupyter, before.session.jupyter_version
            if known is None:
                raise NotFound
            jupyter = replace(known, **changes)
            if choice is not None and choice.kernel_id is None:
                after = await self.start_kernel(tenant, choice, jupyter, version + 1)
            else:
                target = before if choice is None else self._chosen(tenant, choice)
                if target.session.session_id == before.session.session_id and jupyter == known:
                    return target
                after = await self._service.name_for_jupyter(tenant, target.session.session_id, jupyter, version)
            if after.session.session_id != before.session.session_id:
                with suppress(NotFound):
                    await self._service.delete_session(tenant, before.session.session_id)
            return after

    async def delete(self, tenant: TenantId, jupyter_id: str) -> None:
        """End it with its kernel. Raises NotFound, StoreUnavailable."""
        async with self._locks.hold((tenant, "id", jupyter_id)):
            await self._service.delete_session(tenant, self.get(tenant, jupyter_id).session.session_id)

    def _chosen(self, tenant: TenantId, choice: KernelChoice) -> SessionView:
        try:
            return self._service.session_of_kernel(tenant, choice.kernel_id or "")
        except NotFound as error:
            raise InvalidRequest(f"No such kernel: {choice.kernel_id}") from error
