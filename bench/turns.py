"""Contestants in turn: what makes the machine slower makes it slower for all of them. Who fails leaves the round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

from bench.accounting import Engine
from bench.progress import say

CODE = "print(1)"
OUTPUT = "1\n"


@dataclass(frozen=True, slots=True)
class Bench:
    """What every row is given. `quick`: as short as will show whether it works."""

    engine: Engine
    image: str
    quick: bool

    def pick(self, full: int, quick: int) -> int:
        """How many, or how long."""
        return quick if self.quick else full


@dataclass(slots=True)
class Field:
    """The contestants that could be started, by name, and why the others could not."""

    there: dict[str, Any]
    failed: dict[str, str]


def enter(stack: ExitStack, *makers: Callable[[], AbstractContextManager[Any]]) -> Field:
    """Start each. One that does not start is a line in the result."""
    field = Field({}, {})
    for make in makers:
        contestant: Any = make()
        try:
            field.there[contestant.name] = stack.enter_context(contestant)
        except Exception as error:  # noqa: BLE001 - a program of others may fail in any way
            field.failed[contestant.name] = reason(error)
            say(f"{contestant.name} cannot take part: {field.failed[contestant.name]}")
    return field


def take_turns(
    kinds: Mapping[str, Callable[[], None]],
    rounds: int,
    *,
    block: int = 1,
    before: Callable[[], None] = lambda: None,
    every: Mapping[str, int] | None = None,
) -> dict[str, dict[str, Any]]:
    """Time each kind `block` times in each round, after one round that does not count. Milliseconds by kind.

    `every` names kinds that take part in one of so many rounds.
    """
    series: dict[str, dict[str, Any]] = {kind: {"ms": []} for kind in kinds}
    for number in range(rounds + 1):
        for kind, once in kinds.items():
            if "failed" in series[kind] or number % (every or {}).get(kind, 1):
                continue
            try:
                before()
                for _ in range(block):
                    begin = time.perf_counter()
                    once()
                    if number:
                        series[kind]["ms"].append(round((time.perf_counter() - begin) * 1e3, 3))
            except Exception as error:  # noqa: BLE001 - as above
                series[kind]["failed"] = reason(error)
                say(f"{kind} failed: {series[kind]['failed']}")
        if number and number % max(rounds // 5, 1) == 0:
            say(f"round {number} of {rounds}")
    return series


def expect(output: str) -> None:
    """That `CODE` has printed what it prints."""
    assert output == OUTPUT, output


def reason(error: Exception) -> str:
    """One line."""
    return (f"{type(error).__name__}: {error}".splitlines() or [""])[0][:200]


def timed_s(do: Callable[[], Any]) -> float:
    """How long it takes."""
    begin = time.perf_counter()
    do()
    return time.perf_counter() - begin
