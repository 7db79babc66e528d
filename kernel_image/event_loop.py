"""The kernel's event loop, within which the code may run event loops as a script does.

`asyncio.run(main())` and other loops of the code's own run while the kernel's loop stands still; what is run on the
kernel's loop itself, as `asyncio.get_event_loop()` gives it, is run by turns of that loop within a turn.
`nest_asyncio.apply()`, which patches asyncio for the same purpose, allows the code's own loops to stand still likewise.
"""

from __future__ import annotations

import asyncio
import functools
import signal
import threading
from asyncio import tasks
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import Any, NoReturn

from kernel_image.import_hooks import current_shell

_nested_by_the_code = threading.Event()
"""Set once the code has applied nest_asyncio."""


class _Nothing:
    """Stands for a callback that an inner turn has run already, when the outer turn comes to it."""

    _cancelled = True


class _Ready(deque[Any]):
    """The callbacks of a turn, which may have become fewer meanwhile."""

    def popleft(self) -> Any:
        """The next one, or one that does nothing."""
        return super().popleft() if self else _Nothing


class KernelLoop(asyncio.SelectorEventLoop):
    """An event loop that may be run while it runs. Its own state: how many runs are within the first.

    The code may ask it to stop or to close, as scripts do at their end; as long as the kernel needs it, it does not.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ready = _Ready()
        self._depth = 0
        self._stopping: bool = False

    def run_forever(self) -> None:
        """Run until stopped. A task of the code's that leaves or is interrupted ends no more than itself."""
        if self._is_inside():
            self._take_turns(lambda: False)
            return
        while True:
            try:
                super().run_forever()
            except (SystemExit, KeyboardInterrupt):
                continue
            return

    def run_until_complete(self, future: Any) -> Any:
        """Run until the future is done; returns its result."""
        if not self._is_inside():
            return super().run_until_complete(future)
        is_new = not asyncio.isfuture(future)
        future = asyncio.ensure_future(future, loop=self)
        try:
            self._take_turns(future.done)
        except BaseException:
            if not future.done():
                if is_new:
                    future.cancel()
            elif not future.cancelled():
                future.exception()  # it is raised here, and need not be reported
            raise
        if not future.done():
            raise RuntimeError("Event loop stopped before Future completed.")
        return future.result()

    def stop(self) -> None:
        """Stop the innermost run; the first one, which is the kernel's, only for the kernel."""
        if self._depth or not self._is_inside() or asyncio.current_task(self) is None:
            super().stop()

    def close(self) -> None:
        """Close it unless it runs."""
        if not self.is_running():
            super().close()

    async def shutdown_asyncgens(self) -> None:
        """Close all asynchronous generators; others may follow."""
        await super().shutdown_asyncgens()
        self._asyncgens_shutdown_called = False

    async def shutdown_default_executor(self, *arguments: Any, **options: Any) -> None:
        """Shut the executor down; the next one is made when it is needed."""
        await super().shutdown_default_executor(*arguments, **options)
        self._executor_shutdown_called = False
        self._default_executor = None

    def _is_inside(self) -> bool:
        return asyncio._get_running_loop() is self  # noqa: SLF001 - asyncio exports it

    def _take_turns(self, is_done: Callable[[], bool]) -> None:
        """Take turns until it is done, or the loop was asked to stop."""
        with _left(self), _interruptible():
            self._depth += 1
            try:
                while not is_done():
                    self._run_once()  # type: ignore[attr-defined]
                    if self._stopping:
                        break
            finally:
                self._stopping = False
                self._depth -= 1


@contextmanager
def _left(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Let other tasks run although the current one has not returned to its loop."""
    task = asyncio.current_task(loop)
    if task is not None:
        tasks._leave_task(loop, task)  # noqa: SLF001 - asyncio exports it
    try:
        yield
    finally:
        if task is not None:
            tasks._enter_task(loop, task)  # noqa: SLF001 - as above


def _interrupt(_: int, __: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt wherever the code is.

    asyncio's own handler cancels the main task, which code that computes does not notice.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _kernel_loop_suspended() -> Iterator[None]:
    """Let another loop run in this thread while the kernel's stands still; any loop's when nest_asyncio is applied."""
    loop = asyncio._get_running_loop()  # noqa: SLF001 - as above
    if loop is None or not (isinstance(loop, KernelLoop) or _nested_by_the_code.is_set()):
        yield
        return
    with _left(loop), _interruptible():
        asyncio._set_running_loop(None)  # noqa: SLF001 - as above
        try:
            yield
        finally:
            asyncio._set_running_loop(loop)  # noqa: SLF001 - as above
            asyncio.set_event_loop(loop)


def _suspending(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        with _kernel_loop_suspended():
            return function(*arguments, **options)

    return run


def install() -> None:
    """Make a KernelLoop the thread's event loop, and let others be run within it."""
    asyncio.set_event_loop(KernelLoop())
    asyncio.run = asyncio.runners.run = _suspending(asyncio.run)
    asyncio.Runner.run = _suspending(asyncio.Runner.run)  # type: ignore[method-assign]
    base = asyncio.BaseEventLoop
    base.run_forever = _suspending(base.run_forever)  # type: ignore[method-assign]
    base.run_until_complete = _suspending(base.run_until_complete)  # type: ignore[method-assign]


def adapt(module: ModuleType) -> None:
    """Adapt `nest_asyncio` in a kernel, whose event loops it would break."""
    if current_shell() is not None:
        module.apply = _apply_nest_asyncio  # type: ignore[attr-defined]


def _apply_nest_asyncio(*_: Any, **__: Any) -> None:
    _nested_by_the_code.set()
