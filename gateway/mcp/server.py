"""The MCP server of the SDK's with our tools and resources. It knows no transport: it is told whose conversation it is.

Errors of the user's code, and the gateway's sentences, are results with `isError`, which the model reads.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ContentBlock,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListToolsResult,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    ReadResourceResult,
    ResourceTemplate,
    TextContent,
)

from gateway.client import AsyncClient, ClientError, NotFound
from gateway.field_errors import complaint
from gateway.mcp import content, tools
from gateway.mcp.conversation import Conversation
from sessions.errors import CellblockError

Context = ServerRequestContext[Any, Any]
ConversationOf = Callable[[Context], Conversation]

_PROGRESS_EVERY_S = 0.2
_INSTRUCTIONS = (
    "Runs code in an isolated sandbox. `run_code` works like the cells of a notebook: variables, imports and files "
    "stay from one call to the next, until `reset`. Figures that are shown come back as images; files that the code "
    "writes below its working directory come back as resources."
)
_TEMPLATES = [
    ResourceTemplate(
        name="output",
        title="All that a run has printed",
        uri_template=f"{content.SCHEME}://runs/{{run_id}}/output",
        mime_type="text/plain",
    ),
    ResourceTemplate(
        name="run-file",
        title="An image or file that a run has made",
        uri_template=f"{content.SCHEME}://runs/{{run_id}}/files/{{+name}}",
    ),
    ResourceTemplate(
        name="session-file",
        title="A file of a session, as it is now",
        uri_template=f"{content.SCHEME}://sessions/{{session_id}}/files/{{+path}}",
    ),
]


def make_server(version: str, conversation_of: ConversationOf) -> Server[Any]:
    """The server. `conversation_of` finds, or begins, the conversation that a request belongs to."""

    async def list_tools(context: Context, _: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=tools.tools(with_session_id=not conversation_of(context).is_lasting))

    async def call_tool(context: Context, params: CallToolRequestParams) -> CallToolResult:
        arguments = _arguments(params)
        try:
            return await _TOOLS[params.name](context, conversation_of(context), arguments)
        except (ClientError, CellblockError) as error:
            return CallToolResult(content=[TextContent(text=str(error))], is_error=True)

    async def list_resources(context: Context, _: PaginatedRequestParams | None) -> ListResourcesResult:
        return ListResourcesResult(resources=list(conversation_of(context).links))

    async def list_templates(_: Context, __: PaginatedRequestParams | None) -> ListResourceTemplatesResult:
        return ListResourceTemplatesResult(resource_templates=_TEMPLATES)

    async def read_resource(context: Context, params: ReadResourceRequestParams) -> ReadResourceResult:
        try:
            name, data = await _resource(conversation_of(context), params.uri)
        except NotFound as error:
            raise MCPError(INVALID_PARAMS, str(error), {"uri": params.uri}) from error
        except (ClientError, CellblockError) as error:
            raise MCPError(INTERNAL_ERROR, str(error)) from error
        return ReadResourceResult(contents=[content.resource_contents(params.uri, name, data)])

    return Server(
        "cellblock",
        version=version,
        title="Cellblock",
        instructions=_INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
    )


async def _run_code(context: Context, conversation: Conversation, asked: tools.RunCode) -> CallToolResult:
    reported_s = float("-inf")

    async def on_output(count: int, line: str) -> None:
        nonlocal reported_s
        if (now_s := time.monotonic()) >= reported_s + _PROGRESS_EVERY_S:
            reported_s = now_s
            await context.session.report_progress(count, message=line)

    ran = await conversation.run(
        asked.code, on_output, session_id=asked.session_id, language=asked.language, timeout_s=asked.timeout
    )
    return CallToolResult(content=await content.run_content(conversation, ran), is_error=not ran.result.ok)


async def _list_files(_: Context, conversation: Conversation, asked: tools.NoArguments) -> CallToolResult:
    session = await conversation.files_session(asked.session_id)
    files = [
        {"path": file.path, "bytes": file.size_bytes, "modified_at": file.modified_at.isoformat()}
        for file in await session.files.list()
    ]
    return CallToolResult(
        content=_said(conversation, session.session_id, json.dumps({"files": files}, ensure_ascii=False)),
        structured_content={"files": files},
    )


async def _read_file(_: Context, conversation: Conversation, asked: tools.ReadFile) -> CallToolResult:
    session = await conversation.files_session(asked.session_id)
    sizes = {file.path: file.size_bytes for file in await session.files.list()}
    if (size_bytes := sizes.get(asked.path, 0)) > content.MOST_FILE_BYTES:
        return CallToolResult(content=content.too_large_content(session.session_id, asked.path, size_bytes))
    data = await session.files.read(asked.path)
    return CallToolResult(content=content.file_content(session.session_id, asked.path, data))


async def _write_file(_: Context, conversation: Conversation, asked: tools.WriteFile) -> CallToolResult:
    data = _content_of(asked)
    session = await conversation.files_session(asked.session_id)
    await session.files.write(asked.path, data)
    return CallToolResult(content=_said(conversation, session.session_id, f"Wrote {len(data)} bytes to {asked.path}."))


async def _reset(_: Context, conversation: Conversation, asked: tools.NoArguments) -> CallToolResult:
    count = await conversation.reset(asked.session_id)
    done = "The session has a fresh kernel. Its files are still there." if count else "There was nothing to reset."
    return CallToolResult(content=[TextContent(text=done)])


_TOOLS: dict[str, Callable[[Context, Conversation, Any], Awaitable[CallToolResult]]] = {
    "run_code": _run_code,
    "list_files": _list_files,
    "read_file": _read_file,
    "write_file": _write_file,
    "reset": _reset,
}


def _arguments(params: CallToolRequestParams) -> tools.Arguments:
    """The arguments of a call. Raises MCPError."""
    kind = tools.ARGUMENTS.get(params.name)
    if kind is None:
        raise MCPError(INVALID_PARAMS, f"There is no tool {params.name}, but {', '.join(tools.ARGUMENTS)}.")
    try:
        return msgspec.convert(params.arguments or {}, kind)
    except msgspec.ValidationError as error:
        raise MCPError(INVALID_PARAMS, complaint(error, kind.__struct_fields__)) from error


def _content_of(asked: tools.WriteFile) -> bytes:
    """The content of a file to write. Raises MCPError."""
    if (asked.text is None) == (asked.base64 is None):
        raise MCPError(INVALID_PARAMS, "Give the content as `text` or as `base64`.")
    if asked.base64 is None:
        return (asked.text or "").encode()
    try:
        return base64.b64decode(asked.base64, validate=True)
    except binascii.Error as error:
        raise MCPError(INVALID_PARAMS, "`base64` is not valid Base64.") from error


async def _resource(conversation: Conversation, uri: str) -> tuple[str, bytes]:
    """The name and content of what a URI names. Raises NotFound, and other ClientErrors."""
    parts = urlsplit(uri)
    owner_id, _, rest = parts.path.removeprefix("/").partition("/")
    kind, _, name = rest.partition("/")
    owner_id, name = unquote(owner_id), unquote(name)
    client = await conversation.client()
    match parts.scheme, parts.netloc, kind:
        case content.SCHEME, "runs", "output":
            return "output.txt", content.text_of(await client.get_run(owner_id)).encode()
        case content.SCHEME, "runs", "files":
            result = await client.get_run(owner_id)
            if (artifact := {**result.images, **result.files}.get(name)) is not None:
                return name, await artifact.read()
        case content.SCHEME, "sessions", "files" if await _has_session(client, owner_id):
            return name, await (await client.session(owner_id)).files.read(name)
    raise NotFound(f"There is no resource {uri}.")


async def _has_session(client: AsyncClient, session_id: str) -> bool:
    """Whether it is there; to open it would make it."""
    return session_id in [info.session_id for info in await client.sessions()]


def _said(conversation: Conversation, session_id: str, text: str) -> list[ContentBlock]:
    """Text, with the session's id where the client has to name it in its next call."""
    blocks: list[ContentBlock] = [TextContent(text=text)]
    if not conversation.is_lasting:
        blocks.append(TextContent(text=f"[session_id: {session_id}]"))
    return blocks
