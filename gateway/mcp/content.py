"""Results of runs as MCP content: text for a model to read, images, and links to what is too long or is no text."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from mcp.types import (
    BlobResourceContents,
    ContentBlock,
    ImageContent,
    Resource,
    ResourceLink,
    TextContent,
    TextResourceContents,
)

from gateway.client import RunResult
from gateway.mcp.conversation import Conversation, Made, Ran

MOST_CHARACTERS = 20_000
"""Of text in a tool's answer. The whole is a resource."""

MOST_FILE_BYTES = 8 << 20
"""Of a file that `read_file` reads."""

MOST_IMAGES = 5
MOST_IMAGE_BYTES = 1 << 20
"""Of all images in one answer. Hosts bound answers too, and those that are too large are lost as a whole."""

_SHOWN_IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")
_BINARY = "application/octet-stream"
SCHEME = "cellblock"


def output_uri(run_id: str) -> str:
    """The resource that has all of a run's text."""
    return f"{SCHEME}://runs/{quote(run_id, safe='')}/output"


def made_uri(run_id: str, name: str) -> str:
    """The resource that is an image or file of a run."""
    return f"{SCHEME}://runs/{quote(run_id, safe='')}/files/{quote(name, safe='/')}"


def session_file_uri(session_id: str, path: str) -> str:
    """The resource that is a file in a session, as it is when it is read."""
    return f"{SCHEME}://sessions/{quote(session_id, safe='')}/files/{quote(path, safe='/')}"


def text_of(result: RunResult[Any]) -> str:
    """Everything that a run has said: stdout, stderr, results, and the traceback or why it ended."""
    parts = [result.output]
    if result.stderr:
        parts.append(f"[stderr]\n{result.stderr}")
    parts += [text for bundle in result.results if (text := _text_of_bundle(bundle))]
    if result.error:
        parts.append(f"[{result.status}]\n{result.error}")
    if result.truncated:
        parts.append("[The gateway's limits have cut something off.]")
    if result.session_lost:
        parts.append("[The session's variables are lost.]")
    return "\n".join(part.removesuffix("\n") for part in parts if part) or "(no output)"


def bounded(text: str, uri: str) -> str:
    """The beginning and the end of a long text, with where to find the whole."""
    if len(text) <= MOST_CHARACTERS:
        return text
    half = MOST_CHARACTERS // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n[… {left_out} characters are left out; all {len(text)} are in {uri} …]\n{text[-half:]}"


async def run_content(conversation: Conversation, ran: Ran) -> list[ContentBlock]:
    """The answer to `run_code`."""
    result = ran.result
    uri = output_uri(result.run_id)
    text = text_of(result)
    blocks: list[ContentBlock] = [TextContent(text=bounded(text, uri))]
    if ran.found_nothing and not result.session_lost:
        blocks.append(TextContent(text="[The session is new. Variables and files of earlier runs are not there.]"))
    links: list[ResourceLink] = []
    if len(text) > MOST_CHARACTERS:
        links.append(ResourceLink(name="output", uri=uri, mime_type="text/plain", size=len(text.encode())))
    room_bytes, images = MOST_IMAGE_BYTES, 0
    for name, artifact in result.images.items():
        made = ran.made.get(name) or Made(_type_of(name), 0)
        if made.content_type in _SHOWN_IMAGES and images < MOST_IMAGES and 0 < made.size_bytes <= room_bytes:
            blocks.append(image_content(await artifact.read(), made.content_type))
            room_bytes -= made.size_bytes
            images += 1
        else:
            links.append(_link(result.run_id, name, made))
    links += [_link(result.run_id, name, ran.made.get(name) or Made(_type_of(name), 0)) for name in result.files]
    blocks += links
    conversation.links.extend(Resource(**link.model_dump(exclude={"type"})) for link in links)
    if not conversation.is_lasting:
        blocks.append(TextContent(text=f"[session_id: {result.session_id}]"))
    return blocks


def image_content(content: bytes, content_type: str) -> ImageContent:
    """An image that the model sees."""
    return ImageContent(data=base64.b64encode(content).decode(), mime_type=content_type)


def too_large_content(session_id: str, path: str, size_bytes: int) -> list[ContentBlock]:
    """The answer to `read_file` for what is not read at all."""
    uri = session_file_uri(session_id, path)
    return [
        TextContent(text=f"{path} has {size_bytes} bytes: read it with code, in parts."),
        ResourceLink(name=path, uri=uri, mime_type=_type_of(path), size=size_bytes),
    ]


def file_content(session_id: str, path: str, content: bytes) -> list[ContentBlock]:
    """The answer to `read_file`."""
    uri, content_type = session_file_uri(session_id, path), _type_of(path)
    if content_type in _SHOWN_IMAGES and len(content) <= MOST_IMAGE_BYTES:
        return [image_content(content, content_type)]
    text = _decoded(content)
    link = ResourceLink(name=path, uri=uri, mime_type=content_type, size=len(content))
    if text is None:
        return [TextContent(text=f"{path} is no text. It has {len(content)} bytes."), link]
    return [TextContent(text=bounded(text, uri)), *([link] if len(text) > MOST_CHARACTERS else [])]


def resource_contents(uri: str, name: str, content: bytes) -> TextResourceContents | BlobResourceContents:
    """The content of a resource: text where it is some."""
    text = _decoded(content)
    if text is not None:
        return TextResourceContents(uri=uri, mime_type=_type_of(name, "text/plain"), text=text)
    return BlobResourceContents(uri=uri, mime_type=_type_of(name), blob=base64.b64encode(content).decode())


def _text_of_bundle(bundle: Mapping[str, Any]) -> str:
    if "image" in bundle:
        return ""
    for kind in ("text/plain", "text/markdown", "text/latex", "text/html"):
        if kind in bundle:
            return str(bundle[kind])
    return f"[{', '.join(bundle)}]"


def _link(run_id: str, name: str, made: Made) -> ResourceLink:
    return ResourceLink(
        name=name, uri=made_uri(run_id, name), mime_type=made.content_type, size=made.size_bytes or None
    )


def _type_of(name: str, otherwise: str = _BINARY) -> str:
    return mimetypes.guess_type(name)[0] or otherwise


def _decoded(content: bytes) -> str | None:
    """The text, unless it is none: UTF-8 without NUL."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text
