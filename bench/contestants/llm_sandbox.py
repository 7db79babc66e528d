"""llm-sandbox, driven from a process of its own environment."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Self

from bench.accounting import LABEL, cpu_s
from bench.contestants.installed import Unavailable, note_version, python_with

_DRIVER = Path(__file__).parent / "llm_sandbox_driver.py"


class LlmSandbox:
    """Containers of the same image, in which each run is a new Python process. Its runs are counted in its driver."""

    name = "llm-sandbox"

    def __init__(self, image: str) -> None:
        self._image = image
        self._lock = threading.Lock()
        self._waiting: dict[int, Any] = {}
        self._number = 0

    def __enter__(self) -> Self:
        python = python_with(self.name, "llm-sandbox[docker]")
        note_version(python, self.name)
        command = [str(python), "-P", str(_DRIVER), self._image, LABEL]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1
        )
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def cpu(self) -> dict[str, float]:
        """Of the program that uses it."""
        return {"processes": cpu_s(self._process.pid)}

    def fresh(self, code: str) -> tuple[str, float]:
        """Run in a container that is started for it; returns the output, and the seconds until it was open."""
        answer = self._ask({"do": "fresh", "code": code})
        return str(answer["output"]), float(answer["ready_s"])

    def run(self, code: str) -> str:
        """Run in a container that stays; nothing but its files is kept between runs."""
        return str(self._ask({"do": "run", "code": code})["output"])

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        done = threading.Event()
        with self._lock:
            self._number += 1
            slot: dict[str, Any] = {"done": done}
            self._waiting[self._number] = slot
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({"number": self._number, **request}) + "\n")
        deadline = time.monotonic() + 120
        while not done.wait(1):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise Unavailable("its process has ended, or does not answer")
        if "error" in slot:
            raise Unavailable(str(slot["error"]))
        return slot

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            slot = self._waiting.pop(answer["number"])
            slot.update(answer)
            slot["done"].set()
