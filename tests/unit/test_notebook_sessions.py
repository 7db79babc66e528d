"""Sessions as Jupyter's REST API has them: kernels under ids that stay, and the paths that have them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from doubles import until
from run_records import new_session
from workbench import Bench, Benches, S, answers_lost, crash, held, late, unavailable

from sessions.errors import Conflict, InvalidRequest, NotFound, StoreUnavailable, UnsupportedLanguage
from sessions.model import ANONYMOUS, JupyterSession, SessionId, SessionState, SessionView, TenantId, can_name_a_kernel
from sessions.notebook_sessions import KernelChoice

PYTHON = KernelChoice(None, "python")
K = "11111111-2222-3333-4444-555555555555"


async def opened(bench: Bench, path: str = "a.ipynb", choice: KernelChoice = PYTHON) -> SessionView:
    return await bench.notebooks.open(ANONYMOUS, path, None, "notebook", choice)


async def changed(bench: Bench, view: SessionView, choice: KernelChoice | None = None, **changes: Any) -> SessionView:
    return await bench.notebooks.change(ANONYMOUS, jupyter(view).id, changes, choice)


def on(view: SessionView) -> KernelChoice:
    return KernelChoice(view.session.public_kernel_id, "python")


def jupyter(view: SessionView) -> JupyterSession:
    assert view.session.jupyter is not None
    return view.session.jupyter


def paths(bench: Bench) -> list[str]:
    return [jupyter(view).path for view in bench.notebooks.of_tenant(ANONYMOUS)]


# --- the id of a kernel -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [K, "a-b-c-d-e", "a_1-b-c-d-e", f"{'a' * 120}-b-c-d-e"])
def test_a_session_whose_id_could_be_a_kernels_has_it_for_its_kernel(name: str) -> None:
    assert can_name_a_kernel(name)
    assert new_session(session_id=SessionId(name)).public_kernel_id == name


@pytest.mark.parametrize(
    "name", ["s", "a-b-c-d", "a-b-c-d-e-f", "a-b-c-d-e:", "a.b-b-c-d-e", "ä-b-c-d-e", "a-b-c-d-e\n"]
)
def test_another_session_has_a_uuid_that_follows_from_what_it_is(name: str) -> None:
    assert not can_name_a_kernel(name)
    session = new_session(session_id=SessionId(name))
    public = session.public_kernel_id
    assert can_name_a_kernel(public)
    assert replace(session, version=9, last_used_at=session.last_used_at + timedelta(days=1)).public_kernel_id == public
    others = [
        replace(session, tenant=TenantId("other")),
        replace(session, session_id=SessionId("t")),
        replace(session, created_at=session.created_at + timedelta(microseconds=1)),
    ]
    assert len({public, *(other.public_kernel_id for other in others)}) == 4


def test_an_id_has_a_bound() -> None:
    assert not can_name_a_kernel(f"{'a' * 121}-b-c-d-e")


async def test_a_kernel_is_found_by_both_ids_and_by_its_tenant_alone(bench: Bench) -> None:
    await bench.create()
    public = bench.session().public_kernel_id
    for kernel_id in (public, S):
        view = bench.service.session_of_kernel(ANONYMOUS, kernel_id)
        assert (view.session.session_id, view.kernel_name, view.connections) == (S, "python3", 0)
        with pytest.raises(NotFound):
            bench.service.session_of_kernel(TenantId("other"), kernel_id)
    with pytest.raises(NotFound):
        bench.service.session_of_kernel(ANONYMOUS, bench.session().kernel_id or "")


async def test_the_id_outlives_the_container_and_the_gateway(benches: Benches) -> None:
    bench = benches[0]
    await bench.create()
    public, container = bench.session().public_kernel_id, bench.session().kernel_id
    bench.engine.sandboxes.clear()
    bench = await crash(benches)
    assert bench.service.session_of_kernel(ANONYMOUS, public).state is SessionState.DEAD
    await bench.serve("x", session_id=S)
    assert bench.session().kernel_id not in (None, container)
    assert bench.service.session_of_kernel(ANONYMOUS, public).session.session_id == S


async def test_a_kernels_id_is_not_given_twice(bench: Bench) -> None:
    await bench.create()
    await bench.create(SessionId(K))
    for taken in (K, bench.session().public_kernel_id):
        with pytest.raises(Conflict):
            await bench.notebooks.start_kernel(ANONYMOUS, KernelChoice(taken, "python"))
    assert len(bench.service.list_sessions(ANONYMOUS)) == 2


@pytest.mark.parametrize("kernel_id", ["", "k", "a-b-c-d-\x00", "a-b-c-d-\ud800", "a/b-c-d-e-f"])
async def test_what_is_no_kernels_id_starts_none(bench: Bench, kernel_id: str) -> None:
    with pytest.raises(InvalidRequest):
        await bench.notebooks.start_kernel(ANONYMOUS, KernelChoice(kernel_id, "python"))
    assert bench.store.sessions == {}


# --- opening ----------------------------------------------------------------------------------------------------------


async def test_a_path_is_opened_once_whoever_comes_first(bench: Bench) -> None:
    first, second = await asyncio.gather(opened(bench), opened(bench))
    assert jupyter(first) == jupyter(second)
    assert len(bench.service.list_sessions(ANONYMOUS)) == 1
    assert jupyter(await opened(bench, choice=KernelChoice(None, None))) == jupyter(first)


async def test_paths_are_opened_beside_one_another(bench: Bench) -> None:
    with held(bench.store, "add_session") as adding:
        one, other = asyncio.ensure_future(opened(bench, "a")), asyncio.ensure_future(opened(bench, "b"))
        await until(lambda: adding.count == 2)
    await asyncio.gather(one, other)
    assert sorted(paths(bench)) == ["a", "b"]


async def test_a_path_may_be_opened_on_a_kernel_that_is_there_and_works(bench: Bench) -> None:
    running = bench.begin("work", session_id=S)
    kernel = await bench.sent("work")
    view = await opened(bench, choice=KernelChoice(S, None))
    assert (view.session.session_id, view.state) == (S, SessionState.BUSY)
    kernel.end()
    await running
    assert bench.session().jupyter == jupyter(view)
    assert bench.session().runs == 1
    with pytest.raises(Conflict):
        await opened(bench, "b.ipynb", on(view))
    assert paths(bench) == ["a.ipynb"]


async def test_only_one_of_two_paths_gets_a_kernel(bench: Bench) -> None:
    await bench.create()
    choice = KernelChoice(S, "python")
    answers = await asyncio.gather(opened(bench, "a", choice), opened(bench, "b", choice), return_exceptions=True)
    assert [type(answer) for answer in answers] == [SessionView, Conflict]


async def test_a_kernel_that_is_not_there_is_made_under_the_id_that_was_asked_for(bench: Bench) -> None:
    view = await opened(bench, choice=KernelChoice(K, "other"))
    assert (view.session.session_id, view.kernel_name) == (K, "another")
    with pytest.raises(UnsupportedLanguage):
        await opened(bench, "b", KernelChoice(None, None))


async def test_what_is_opened_outlives_the_gateway(benches: Benches) -> None:
    view = await opened(benches[0])
    bench = await crash(benches)
    assert jupyter(await opened(bench)) == jupyter(view)
    await changed(bench, view, path="b.ipynb")
    bench = await crash(benches)
    assert paths(bench) == ["b.ipynb"]


# --- changing ---------------------------------------------------------------------------------------------------------


async def test_a_path_is_changed_while_something_runs_and_stays_changed_when_that_ends(bench: Bench) -> None:
    view = await opened(bench)
    session_id = view.session.session_id
    running = bench.begin("work", session_id=session_id)
    kernel = await bench.sent("work")
    await changed(bench, view, path="b.ipynb", name="b", type="file")
    with held(bench.store, "finish_run") as ending:
        kernel.end()
        await until(lambda: ending.count == 1)
        await changed(bench, view, path="c.ipynb")
    await running
    expected = JupyterSession(jupyter(view).id, "c.ipynb", "b", "file")
    for stored in (bench.session(session_id), bench.service.get_session(ANONYMOUS, session_id).session):
        assert (stored.jupyter, stored.runs) == (expected, 1)


async def test_changes_that_come_together_are_all_made(bench: Bench) -> None:
    view = await opened(bench)
    with held(bench.store, "renew_session") as writing:
        all_made = asyncio.gather(*(changed(bench, view, **{field: field[0]}) for field in ("path", "name", "type")))
        await until(lambda: writing.count == 1)
        await asyncio.sleep(0.01)
    await all_made
    assert bench.session(view.session.session_id).jupyter == JupyterSession(jupyter(view).id, "p", "n", "t")


async def test_a_change_is_written_only_if_there_is_one(bench: Bench) -> None:
    view = await opened(bench)
    with unavailable(bench.store, "renew_session"):
        await changed(bench, view, path="a.ipynb")
        await changed(bench, view, on(view))
        with pytest.raises(StoreUnavailable):
            await changed(bench, view, path="b.ipynb")


@pytest.mark.parametrize("gateway_is_new", [False, True])
async def test_a_change_that_comes_late_undoes_none_that_was_made_since(
    benches: Benches,
    gateway_is_new: bool,  # noqa: FBT001
) -> None:
    bench = benches[0]
    view = await opened(bench)
    with late(bench.store, "renew_session") as change:
        for path in ("late", "later"):
            with pytest.raises(StoreUnavailable):
                await changed(bench, view, path=path)
    if gateway_is_new:
        bench = await crash(benches)
    await changed(bench, view, path="b.ipynb")
    await change.arrives()
    assert bench.session(view.session.session_id).jupyter == replace(jupyter(view), path="b.ipynb")
    assert paths(bench) == ["b.ipynb"]


async def test_a_change_that_was_refused_and_made_all_the_same_is_undone_by_the_next_write(bench: Bench) -> None:
    view = await opened(bench)
    session_id = view.session.session_id
    with answers_lost(bench.store, "renew_session"), pytest.raises(StoreUnavailable):
        await changed(bench, view, path="b.ipynb")
    assert paths(bench) == ["a.ipynb"]
    await bench.service.renew_session(ANONYMOUS, session_id, idle_timeout_s=None, max_lifetime_s=None)
    assert bench.session(session_id).jupyter == jupyter(view)


@pytest.mark.parametrize("to_new", [False, True])
async def test_a_session_that_moves_leaves_no_kernel_behind(bench: Bench, to_new: bool) -> None:  # noqa: FBT001
    view = await opened(bench)
    await bench.create()
    there = bench.service.get_session(ANONYMOUS, S)
    after = await changed(bench, view, PYTHON if to_new else on(there), path="b.ipynb")
    assert (after.session.session_id == S) is not to_new
    assert jupyter(after) == replace(jupyter(view), path="b.ipynb")
    assert bench.notebooks.get(ANONYMOUS, jupyter(view).id) == after
    with pytest.raises(NotFound):
        bench.service.session_of_kernel(ANONYMOUS, view.session.public_kernel_id)


@pytest.mark.parametrize("to_older", [False, True])
async def test_a_move_without_an_end_of_the_old_kernel_leaves_one_session(
    benches: Benches,
    to_older: bool,  # noqa: FBT001
) -> None:
    bench = benches[0]
    if to_older:
        await bench.create()
    view = await opened(bench)
    if not to_older:
        await bench.create()
    there = bench.service.get_session(ANONYMOUS, S)
    with unavailable(bench.store, "remove_session"), pytest.raises(StoreUnavailable):
        await changed(bench, view, on(there))
    for again in (bench, await crash(benches)):
        (only,) = again.notebooks.of_tenant(ANONYMOUS)
        assert only.session.session_id == S


async def test_a_session_moves_to_no_kernel_that_is_taken_or_unknown(bench: Bench) -> None:
    view, other = await opened(bench), await opened(bench, "b.ipynb")
    with pytest.raises(Conflict):
        await changed(bench, view, on(other))
    for unknown in ("", K):
        with pytest.raises(InvalidRequest, match="No such kernel"):
            await changed(bench, view, KernelChoice(unknown, "python"))
    with pytest.raises(UnsupportedLanguage):
        await changed(bench, view, KernelChoice(None, None))
    assert paths(bench) == ["a.ipynb", "b.ipynb"]


# --- ending -----------------------------------------------------------------------------------------------------------


async def test_a_session_ends_with_its_kernel_and_with_it(bench: Bench) -> None:
    first, second = await opened(bench), await opened(bench, "b.ipynb")
    await bench.notebooks.delete(ANONYMOUS, jupyter(first).id)
    await bench.service.delete_session(ANONYMOUS, second.session.session_id)
    assert (bench.store.sessions, bench.service.list_sessions(ANONYMOUS)) == ({}, [])
    for view in (first, second):
        with pytest.raises(NotFound):
            await bench.notebooks.delete(ANONYMOUS, jupyter(view).id)
        with pytest.raises(NotFound):
            await changed(bench, view, path="c")


async def test_another_tenant_has_sessions_of_its_own(bench: Bench) -> None:
    view, bob = await opened(bench), TenantId("bob")
    sessions = bench.notebooks
    assert sessions.of_tenant(bob) == []
    for asked in (sessions.delete(bob, jupyter(view).id), sessions.change(bob, jupyter(view).id, {"path": "x"}, None)):
        with pytest.raises(NotFound):
            await asked
    other = await sessions.open(bob, "a.ipynb", None, "notebook", on(view))  # that kernel is not there for bob
    assert (other.session.tenant, jupyter(other).id) != (ANONYMOUS, jupyter(view).id)
    assert paths(bench) == ["a.ipynb"]
