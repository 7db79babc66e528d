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

from sessions.errors import Conflict, InvalidRequest, NotFound, StoreUnavailable, TooManyRequests, UnsupportedLanguage
from sessions.model import ANONYMOUS, JupyterSession, SessionId, SessionState, SessionView, TenantId, can_name_a_kernel
from sessions.notebook_sessions import KernelChoice, Notebook
from sessions.session.session_kernel import MAX_JUPYTER_SESSIONS

PYTHON = KernelChoice(None, "python")
K = "11111111-2222-3333-4444-555555555555"


async def opened(bench: Bench, path: str = "a.ipynb", choice: KernelChoice = PYTHON) -> Notebook:
    return await bench.notebooks.open(ANONYMOUS, path, None, "notebook", choice)


async def changed(bench: Bench, notebook: Notebook, choice: KernelChoice | None = None, **changes: Any) -> Notebook:
    return await bench.notebooks.change(ANONYMOUS, notebook.jupyter.id, changes, choice)


def on(view: SessionView) -> KernelChoice:
    return KernelChoice(view.session.public_kernel_id, "python")


def paths(bench: Bench) -> list[str]:
    return [notebook.jupyter.path for notebook in bench.notebooks.of_tenant(ANONYMOUS)]


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
    assert first.jupyter == second.jupyter
    assert len(bench.service.list_sessions(ANONYMOUS)) == 1
    assert (await opened(bench, choice=KernelChoice(None, None))).jupyter == first.jupyter


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
    assert (view.kernel.session.session_id, view.kernel.state) == (S, SessionState.BUSY)
    kernel.end()
    await running
    assert bench.session().jupyter == (view.jupyter,)
    assert bench.session().runs == 1


@pytest.mark.parametrize("kernel_id", [S, K])
async def test_two_paths_may_have_one_kernel_also_when_they_come_at_once(bench: Bench, kernel_id: str) -> None:
    await bench.create()
    choice = KernelChoice(kernel_id, "python")
    one, other = await asyncio.gather(opened(bench, "a", choice), opened(bench, "b", choice))
    assert one.jupyter.id != other.jupyter.id
    assert one.kernel_session_id == other.kernel_session_id == kernel_id
    assert (await opened(bench, "a", PYTHON)).jupyter == one.jupyter
    for notebook in (one, other):
        assert bench.notebooks.get(ANONYMOUS, notebook.jupyter.id).kernel_session_id == kernel_id
    assert paths(bench) == ["a", "b"]


async def test_all_paths_of_a_kernel_outlive_the_gateway(benches: Benches) -> None:
    await benches[0].create()
    for path in ("a", "b", "c"):
        await opened(benches[0], path, KernelChoice(S, None))
    bench = await crash(benches)
    assert paths(bench) == ["a", "b", "c"]
    assert {notebook.kernel_session_id for notebook in bench.notebooks.of_tenant(ANONYMOUS)} == {S}


async def test_a_kernel_has_so_many_paths_and_no_more(bench: Bench) -> None:
    await bench.create()
    choice = KernelChoice(S, "python")
    notebooks = [await opened(bench, str(number), choice) for number in range(MAX_JUPYTER_SESSIONS)]
    with pytest.raises(TooManyRequests, match="delete one"):
        await opened(bench, "one more", choice)
    await changed(bench, notebooks[0], path="renamed")
    await bench.notebooks.delete(ANONYMOUS, notebooks[1].jupyter.id)
    await opened(bench, "one more", choice)


@pytest.mark.parametrize("kernel_id", ["nobody", "a-b-c-d-\x00", "x" * 5000])
async def test_a_kernel_that_cannot_be_there_is_made_under_a_new_id(bench: Bench, kernel_id: str) -> None:
    view = await opened(bench, choice=KernelChoice(kernel_id, "other"))
    assert can_name_a_kernel(view.kernel_session_id)
    assert view.kernel.kernel_name == "another"


async def test_a_kernel_that_is_not_there_is_made_under_the_id_that_was_asked_for(bench: Bench) -> None:
    view = await opened(bench, choice=KernelChoice(K, "other"))
    assert (view.kernel.session.session_id, view.kernel.kernel_name) == (K, "another")
    with pytest.raises(UnsupportedLanguage):
        await opened(bench, "b", KernelChoice(None, None))


async def test_what_is_opened_outlives_the_gateway(benches: Benches) -> None:
    view = await opened(benches[0])
    bench = await crash(benches)
    assert (await opened(bench)).jupyter == view.jupyter
    await changed(bench, view, path="b.ipynb")
    bench = await crash(benches)
    assert paths(bench) == ["b.ipynb"]


# --- changing ---------------------------------------------------------------------------------------------------------


async def test_a_path_is_changed_while_something_runs_and_stays_changed_when_that_ends(bench: Bench) -> None:
    view = await opened(bench)
    session_id = view.kernel.session.session_id
    running = bench.begin("work", session_id=session_id)
    kernel = await bench.sent("work")
    await changed(bench, view, path="b.ipynb", name="b", type="file")
    with held(bench.store, "finish_run") as ending:
        kernel.end()
        await until(lambda: ending.count == 1)
        await changed(bench, view, path="c.ipynb")
    await running
    expected = JupyterSession(view.jupyter.id, "c.ipynb", "b", "file")
    for stored in (bench.session(session_id), bench.service.get_session(ANONYMOUS, session_id).session):
        assert (stored.jupyter, stored.runs) == ((expected,), 1)


async def test_changes_that_come_together_are_all_made(bench: Bench) -> None:
    view = await opened(bench)
    with held(bench.store, "renew_session") as writing:
        all_made = asyncio.gather(*(changed(bench, view, **{field: field[0]}) for field in ("path", "name", "type")))
        await until(lambda: writing.count == 1)
        await asyncio.sleep(0.01)
    await all_made
    assert bench.session(view.kernel.session.session_id).jupyter == (JupyterSession(view.jupyter.id, "p", "n", "t"),)


async def test_a_change_is_written_only_if_there_is_one(bench: Bench) -> None:
    view = await opened(bench)
    with unavailable(bench.store, "renew_session"):
        await changed(bench, view, path="a.ipynb")
        await changed(bench, view, on(view.kernel))
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
    assert bench.session(view.kernel.session.session_id).jupyter == (replace(view.jupyter, path="b.ipynb"),)
    assert paths(bench) == ["b.ipynb"]


async def test_a_change_that_was_refused_and_made_all_the_same_is_undone_by_the_next_write(bench: Bench) -> None:
    view = await opened(bench)
    session_id = view.kernel.session.session_id
    with answers_lost(bench.store, "renew_session"), pytest.raises(StoreUnavailable):
        await changed(bench, view, path="b.ipynb")
    assert paths(bench) == ["a.ipynb"]
    await bench.service.renew_session(ANONYMOUS, session_id, idle_timeout_s=None, max_lifetime_s=None)
    assert bench.session(session_id).jupyter == (view.jupyter,)


@pytest.mark.parametrize("to_new", [False, True])
async def test_a_session_that_moves_leaves_no_kernel_behind(bench: Bench, to_new: bool) -> None:  # noqa: FBT001
    view = await opened(bench)
    await bench.create()
    there = bench.service.get_session(ANONYMOUS, S)
    after = await changed(bench, view, PYTHON if to_new else on(there), path="b.ipynb")
    assert (after.kernel.session.session_id == S) is not to_new
    assert after.jupyter == replace(view.jupyter, path="b.ipynb", moves=1)
    assert bench.notebooks.get(ANONYMOUS, view.jupyter.id) == after
    with pytest.raises(NotFound):
        bench.service.session_of_kernel(ANONYMOUS, view.kernel.session.public_kernel_id)


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
        assert only.kernel.session.session_id == S


async def test_a_session_moves_to_a_kernel_that_another_has_and_leaves_one_to_others(benches: Benches) -> None:
    bench = benches[0]
    first, other = await opened(bench), await opened(bench, "b.ipynb")
    beside = await opened(bench, "c.ipynb", on(first.kernel))
    moved = await changed(bench, first, on(other.kernel))
    assert moved.kernel_session_id == other.kernel_session_id
    await changed(bench, beside, path="d.ipynb")
    for again in (bench, await crash(benches)):
        by_kernel = {(one.kernel_session_id, one.jupyter.path) for one in again.notebooks.of_tenant(ANONYMOUS)}
        assert by_kernel == {
            (other.kernel_session_id, "a.ipynb"),
            (other.kernel_session_id, "b.ipynb"),
            (beside.kernel_session_id, "d.ipynb"),
        }
        assert len(again.service.list_sessions(ANONYMOUS)) == 2
    back = await changed(benches[-1], moved, on(beside.kernel))
    assert back.jupyter.moves == 2
    assert benches[-1].notebooks.get(ANONYMOUS, back.jupyter.id).kernel_session_id == beside.kernel_session_id


async def test_a_move_that_is_written_in_one_place_alone_is_made_and_ends_with_the_session(benches: Benches) -> None:
    bench = benches[0]
    first = await opened(bench)
    beside = await opened(bench, "b.ipynb", on(first.kernel))
    await bench.create()
    remove, bench.service.remove_jupyter_session = bench.service.remove_jupyter_session, _refuse  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        await changed(bench, first, KernelChoice(S, None))
    bench.service.remove_jupyter_session = remove  # type: ignore[method-assign]
    for path in ("c.ipynb", "d.ipynb"):
        await changed(bench, beside, path=path)
        assert bench.notebooks.get(ANONYMOUS, first.jupyter.id).kernel_session_id == S
        bench = await crash(benches)
    await bench.notebooks.delete(ANONYMOUS, first.jupyter.id)
    assert paths(bench) == ["d.ipynb"]
    with pytest.raises(NotFound):
        bench.service.get_session(ANONYMOUS, S)


async def _refuse(*_: object) -> None:
    raise StoreUnavailable


async def test_a_session_moves_to_no_kernel_that_is_unknown(bench: Bench) -> None:
    view = await opened(bench)
    await opened(bench, "b.ipynb")
    for unknown in ("", K):
        with pytest.raises(InvalidRequest, match="No such kernel"):
            await changed(bench, view, KernelChoice(unknown, "python"))
    with pytest.raises(UnsupportedLanguage):
        await changed(bench, view, KernelChoice(None, None))
    assert paths(bench) == ["a.ipynb", "b.ipynb"]


# --- ending -----------------------------------------------------------------------------------------------------------


async def test_a_session_ends_with_its_kernel_and_with_it(bench: Bench) -> None:
    first, second = await opened(bench), await opened(bench, "b.ipynb")
    await bench.notebooks.delete(ANONYMOUS, first.jupyter.id)
    await bench.service.delete_session(ANONYMOUS, second.kernel.session.session_id)
    assert (bench.store.sessions, bench.service.list_sessions(ANONYMOUS)) == ({}, [])
    for view in (first, second):
        with pytest.raises(NotFound):
            await bench.notebooks.delete(ANONYMOUS, view.jupyter.id)
        with pytest.raises(NotFound):
            await changed(bench, view, path="c")


async def test_a_kernel_goes_on_for_the_other_of_two_sessions_and_ends_with_it(benches: Benches) -> None:
    bench = benches[0]
    first = await opened(bench)
    second = await opened(bench, "b.ipynb", on(first.kernel))
    running = bench.begin("work", session_id=first.kernel_session_id)
    kernel = await bench.sent("work")
    await bench.notebooks.delete(ANONYMOUS, first.jupyter.id)
    kernel.end("done")
    assert (await running).output == "done"
    with pytest.raises(NotFound):
        await bench.notebooks.delete(ANONYMOUS, first.jupyter.id)
    bench = await crash(benches)
    assert paths(bench) == ["b.ipynb"]
    assert (await opened(bench)).kernel_session_id != second.kernel_session_id
    await bench.notebooks.delete(ANONYMOUS, second.jupyter.id)
    with pytest.raises(NotFound):
        bench.service.get_session(ANONYMOUS, second.kernel_session_id)


async def test_a_kernel_ends_with_the_last_of_two_sessions_also_when_both_end_at_once(bench: Bench) -> None:
    first = await opened(bench)
    second = await opened(bench, "b.ipynb", on(first.kernel))
    await asyncio.gather(*(bench.notebooks.delete(ANONYMOUS, one.jupyter.id) for one in (first, second)))
    assert bench.service.list_sessions(ANONYMOUS) == []


async def test_both_sessions_end_with_their_kernel(bench: Bench) -> None:
    first = await opened(bench)
    second = await opened(bench, "b.ipynb", on(first.kernel))
    await bench.service.delete_session(ANONYMOUS, first.kernel_session_id)
    assert paths(bench) == []
    for one in (first, second):
        with pytest.raises(NotFound):
            bench.notebooks.get(ANONYMOUS, one.jupyter.id)
    assert (await opened(bench)).jupyter.id != first.jupyter.id


async def test_another_tenant_has_sessions_of_its_own(bench: Bench) -> None:
    view, bob = await opened(bench), TenantId("bob")
    sessions = bench.notebooks
    assert sessions.of_tenant(bob) == []
    for asked in (sessions.delete(bob, view.jupyter.id), sessions.change(bob, view.jupyter.id, {"path": "x"}, None)):
        with pytest.raises(NotFound):
            await asked
    other = await sessions.open(bob, "a.ipynb", None, "notebook", on(view.kernel))  # that kernel is not there for bob
    assert (other.kernel.session.tenant, other.jupyter.id) != (ANONYMOUS, view.jupyter.id)
    assert paths(bench) == ["a.ipynb"]
