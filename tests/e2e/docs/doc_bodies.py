"""Blocks of JSON and YAML, and conversations over the WebSocket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
from doc_console import pattern
from websockets.sync.client import connect

from gateway.config import loader
from sessions.errors import Misconfigured

_PATIENCE_S = 30


def parse(text: str) -> str:
    """What is wrong with JSON, or nothing."""
    try:
        json.loads(text)
    except ValueError as error:
        return str(error)
    return ""


def send(request: str, text: str, http: httpx.Client) -> str:
    """What is wrong with a body that a request such as `POST /sessions` has, or nothing."""
    method, _, path = request.partition(" ")
    answer = http.request(method, path, json=json.loads(text))
    return "" if answer.is_success else f"{request}: {answer.status_code} {answer.text}"


def compare(request: str, text: str, http: httpx.Client) -> str:
    """Whether an answer has the fields that the page shows, and values of their types."""
    method, _, path = request.partition(" ")
    answer = http.request(method, path, json={} if method in ("POST", "PUT", "PATCH") else None).json()
    shown = json.loads(text)
    return "" if has_form(shown, answer) else f"{request} answers {json.dumps(answer)}"


def has_form(shown: Any, answer: Any) -> bool:
    match shown, answer:
        case dict(), dict():
            return shown.keys() == answer.keys() and all(has_form(shown[name], answer[name]) for name in shown)
        case list(), list():
            return all(map(has_form, shown, answer))
        case ((int() | float()), (int() | float())):
            return isinstance(shown, bool) == isinstance(answer, bool)
        case _:
            return type(shown) is type(answer)


def configure(text: str, directory: Path) -> str:
    """Whether it is a configuration of ours."""
    path = directory / "configuration.yaml"
    path.write_text(text)
    try:
        loader.load(path, {})
    except Misconfigured as error:
        return str(error)
    return ""


def converse(text: str, url: str, headers: dict[str, str]) -> str:
    """Send the lines behind `→`, and hear those behind `←`. Of what `…` stands for in ids, the latest is sent."""
    run_id = ""
    with connect(url.replace("http", "ws", 1) + "/runcode/ws", additional_headers=headers) as ws:
        for line in text.splitlines():
            sign, _, message = line.partition(" ")
            if sign == "→":
                ws.send(message.replace('"run_id": "…"', f'"run_id": "{run_id}"'))
                continue
            heard = json.loads(ws.recv(_PATIENCE_S))
            run_id = heard.get("run_id", run_id)
            said = json.dumps(heard, ensure_ascii=False)
            if not pattern(message).fullmatch(said):
                return f"{said}, and not {message}"
    return ""
