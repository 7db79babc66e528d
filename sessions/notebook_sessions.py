"""What Jupyter's REST API calls sessions: the path of a notebook, and the kernel that it has, alone or with others.

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


@dataclass(frozen=True, slots=True)
class Notebook:
    """A Jupyter session, and the kernel that it has."""

    jupyter: JupyterSession
    kernel: SessionView

    @property
    def kernel_session_id(self) -> SessionId:
        """Our own id of its kernel."""
        return self.kernel.session.session_id


class NotebookSessions:
    """The mutable state is a lock for each path that is being opened, and each session and kernel that is changed."""

    def __init__(self, service: Service, limits: SessionLimits) -> None:
        self._service = service
        self._limits = limits
        self._locks: KeyedLock[tuple[str, ...]] = KeyedLock()

    def __repr__(self) -> str:
        return f"<NotebookSessions {self._locks!r}>"

    def of_tenant(self, tenant: TenantId) -> list[Notebook]:
        """A tenant's Jupyter sessions, those of the oldest kernel first."""
        found: dict[JupyterSessionId, Notebook] = {}
        for view in self._service.list_sessions(tenant):
            for jupyter in view.session.jupyter:
                # After a move to another kernel, the old one has it too, until that is written.
                known, one = found.get(jupyter.id), Notebook(jupyter, view)
                if known is None or _age(known) < _age(one):
                    found[jupyter.id] = one
        return list(found.values())

    def get(self, tenant: TenantId, jupyter_id: str) -> Notebook:
        """The Jupyter session by this id. Raises NotFound."""
        for notebook in self.of_tenant(tenant):
            if notebook.jupyter.id == jupyter_id:
                return notebook
        raise NotFound("There is no Jupyter session by that id.")

    async def start_kernel(
        self, tenant: TenantId, choice: KernelChoice, jupyter: JupyterSession | None = None
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
            )
        )

    async def open(
        self, tenant: TenantId, path: str, name: str | None, jupyter_type: str, choice: KernelChoice
    ) -> Notebook:
        """The Jupyter session of this path, whatever its kernel; else a new one, with the kernel chosen or a new.

        An id that is no kernel's is that of the new kernel, if it can be. Raises TooManyRequests, and what
        `start_kernel` does.
        """
        async with self._locks.hold((tenant, "path", path)):
            for notebook in self.of_tenant(tenant):
                if notebook.jupyter.path == path:
                    return notebook
            jupyter = JupyterSession(JupyterSessionId(str(uuid4())), path, name, jupyter_type)
            kernel_id = choice.kernel_id
            if kernel_id is None:
                return Notebook(jupyter, await self.start_kernel(tenant, choice, jupyter))
            async with self._locks.hold((tenant, "kernel", self._session_id(tenant, kernel_id))):
                with suppress(NotFound):
                    found = self._service.session_of_kernel(tenant, kernel_id)
                    return await self._put(tenant, found, jupyter)
                fresh = choice if can_name_a_kernel(kernel_id) else replace(choice, kernel_id=None)
                return Notebook(jupyter, await self.start_kernel(tenant, fresh, jupyter))

    async def change(
        self, tenant: TenantId, jupyter_id: str, changes: Mapping[str, Any], choice: KernelChoice | None
    ) -> Notebook:
        """Change its path, name or type; with a `choice`, move it to that kernel.

        The kernel that it had ends, unless other Jupyter sessions have it. Raises NotFound, InvalidRequest when the
        kernel is unknown, TooManyRequests, and what `start_kernel` does.
        """
        async with self._locks.hold((tenant, "id", jupyter_id)):
            before = self.get(tenant, jupyter_id)
            jupyter = replace(before.jupyter, **changes)
            if choice is None:
                after = before if jupyter == before.jupyter else await self._put(tenant, before.kernel, jupyter)
            elif choice.kernel_id is None:
                jupyter = replace(jupyter, moves=jupyter.moves + 1)
                after = Notebook(jupyter, await self.start_kernel(tenant, choice, jupyter))
            else:
                after = await self._move(tenant, before, jupyter, choice.kernel_id)
            if after.kernel_session_id != before.kernel_session_id:
                await self._release(tenant, before)
            return after

    async def delete(self, tenant: TenantId, jupyter_id: str) -> None:
        """End it, and its kernel, unless other Jupyter sessions have that. Raises NotFound, StoreUnavailable."""
        async with self._locks.hold((tenant, "id", jupyter_id)):
            last = self.get(tenant, jupyter_id)
            # Kernels that it has left, where that could not be written, go first: else it would be back at one of them.
            for view in self._service.list_sessions(tenant):
                for jupyter in view.session.jupyter:
                    if jupyter.id == jupyter_id and view.session.session_id != last.kernel_session_id:
                        await self._release(tenant, Notebook(jupyter, view))
            await self._release(tenant, last)

    async def _move(self, tenant: TenantId, before: Notebook, jupyter: JupyterSession, kernel_id: str) -> Notebook:
        """Write it to this kernel, which may be its own. Raises InvalidRequest when there is none."""
        async with self._locks.hold((tenant, "kernel", self._session_id(tenant, kernel_id))):
            try:
                kernel = self._service.session_of_kernel(tenant, kernel_id)
            except NotFound as error:
                raise InvalidRequest(f"No such kernel: {kernel_id}") from error
            if kernel.session.session_id != before.kernel_session_id:
                jupyter = replace(jupyter, moves=jupyter.moves + 1)
            return before if jupyter == before.jupyter else await self._put(tenant, kernel, jupyter)

    async def _put(self, tenant: TenantId, kernel: SessionView, jupyter: JupyterSession) -> Notebook:
        view = await self._service.put_jupyter_session(tenant, kernel.session.session_id, jupyter)
        return Notebook(jupyter, view)

    async def _release(self, tenant: TenantId, notebook: Notebook) -> None:
        """Take a Jupyter session from a kernel, which ends if no other one has it."""
        session_id, jupyter_id = notebook.kernel_session_id, notebook.jupyter.id
        async with self._locks.hold((tenant, "kernel", session_id)):
            others = [one for one in self.of_tenant(tenant) if one.kernel_session_id == session_id]
            with suppress(NotFound):
                if any(one.jupyter.id != jupyter_id for one in others):
                    await self._service.remove_jupyter_session(tenant, session_id, jupyter_id)
                else:
                    await self._service.delete_session(tenant, session_id)

    def _session_id(self, tenant: TenantId, kernel_id: str) -> str:
        """Our own id of a kernel; of one that is not there, what it would get."""
        try:
            return self._service.session_of_kernel(tenant, kernel_id).session.session_id
        except NotFound:
            return kernel_id


def _age(notebook: Notebook) -> tuple[int, int]:
    """The higher of two was written later."""
    return notebook.jupyter.moves, notebook.kernel.session.jupyter_version
