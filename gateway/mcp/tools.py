"""The tools as clients see them: names, descriptions, and the arguments with their schemas."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from mcp.types import Tool, ToolAnnotations
from msgspec import Meta, Struct

_SESSION_ID = "session_id"


class Arguments(Struct, kw_only=True, forbid_unknown_fields=True):
    """What every tool takes. Clients whose conversation the server knows are not told of it."""

    session_id: Annotated[
        str | None,
        Meta(
            description="The session to use: the `session_id` of an earlier answer. Variables and files stay there. "
            "Without it, a new session is made."
        ),
    ] = None


class RunCode(Arguments):
    """Arguments of `run_code`."""

    code: Annotated[
        str,
        Meta(
            description="The code. In Python as a notebook cell: magics, `!commands` and top-level `await` work. In "
            "another language, `bash` for example, a script."
        ),
    ]
    language: Annotated[str | None, Meta(description="One of the gateway's languages; Python unless given.")] = None
    timeout: Annotated[
        float | None, Meta(description="Seconds after which the code is interrupted; the gateway's own unless given.")
    ] = None


class NoArguments(Arguments):
    """Arguments of `list_files` and `reset`."""


class ReadFile(Arguments):
    """Arguments of `read_file`."""

    path: Annotated[str, Meta(description="The file, relative to the working directory.")]


class WriteFile(Arguments):
    """Arguments of `write_file`."""

    path: Annotated[
        str, Meta(description="The file, relative to the working directory. Directories are made as needed.")
    ]
    text: Annotated[str | None, Meta(description="The content, as text.")] = None
    base64: Annotated[str | None, Meta(description="The content of a binary file, in Base64, instead of `text`.")] = (
        None
    )


ARGUMENTS: dict[str, type[Arguments]] = {
    "run_code": RunCode,
    "list_files": NoArguments,
    "read_file": ReadFile,
    "write_file": WriteFile,
    "reset": NoArguments,
}

_FILES_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "files": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "path": {"type": "string", "description": "Relative to the working directory."},
                    "bytes": {"type": "integer"},
                    "modified_at": {"type": "string", "format": "date-time"},
                },
                "required": ["path", "bytes", "modified_at"],
            },
        }
    },
    "required": ["files"],
}


def tools(*, with_session_id: bool) -> list[Tool]:
    """All of them. Where there is no conversation, they take the session's id."""

    def schema(name: str) -> dict[str, Any]:
        kind = ARGUMENTS[name]
        _, components = msgspec.json.schema_components((kind,))
        found = dict(components[kind.__name__])
        known = found.pop("properties")
        found.pop("title", None)
        found.pop("description", None)
        shown = {key: _plain(value) for key, value in known.items() if with_session_id or key != _SESSION_ID}
        return {**found, "properties": shown}

    return [
        Tool(
            name="run_code",
            title="Run code",
            description="Run code in an isolated session and return what it prints, the value of its last expression, "
            "its figures and files, or the traceback. Variables, imports and files stay for the next call.",
            input_schema=schema("run_code"),
            annotations=ToolAnnotations(
                read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=False
            ),
        ),
        Tool(
            name="list_files",
            title="List files",
            description="List the files in the session's working directory.",
            input_schema=schema("list_files"),
            output_schema=_FILES_SCHEMA,
            annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
        ),
        Tool(
            name="read_file",
            title="Read a file",
            description="Read a file of the session. Text and images come as they are, anything else as a resource.",
            input_schema=schema("read_file"),
            annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
        ),
        Tool(
            name="write_file",
            title="Write a file",
            description="Write a file in the session, for code to work with. A file of that name is replaced.",
            input_schema=schema("write_file"),
            annotations=ToolAnnotations(
                read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False
            ),
        ),
        Tool(
            name="reset",
            title="Reset the session",
            description="Start a fresh kernel: variables and imports are gone, files stay, and what runs is cancelled.",
            input_schema=schema("reset"),
            annotations=ToolAnnotations(
                read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False
            ),
        ),
    ]


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """What may be left out may also be null, which hosts need not know, and some do not understand."""
    kinds = [kind for kind in schema.get("anyOf", []) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    return {**kinds[0], "description": schema["description"]}
