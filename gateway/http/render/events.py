"""Events as clients get them, the same over server-sent events, NDJSON and WebSockets: docs/events.md.

Stored events name artifacts by id and leave the answer out; here they get URLs, and `end` the whole answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.http.render.answer import artifact_url, strict_json
from sessions.model import ArtifactId, ArtifactKind, ArtifactRef, Event, EventType, RunId

_ARTIFACTS = {EventType.IMAGE: ArtifactKind.IMAGE, EventType.FILE: ArtifactKind.FILE}

WireEvent = dict[str, Any]
"""`{"run_id", "seq", "type", …}`, JSON-ready but for what `strict_json` replaces."""


def wire_event(run_id: RunId, event: Event, base_url: str) -> WireEvent:
    """One stored event; of `end`, what the answer does not tell."""
    head: WireEvent = {"run_id": run_id, "seq": event.seq, "type": event.type.value}
    if event.type in _ARTIFACTS:
        return head | _artifact_fields(_ARTIFACTS[event.type], event.fields, base_url)
    if event.type is EventType.STARTED:
        return head | {name: value for name, value in event.fields.items() if value is not None}
    if event.type is EventType.END:
        return head  # all of it is in the answer, and there the parts that have nothing to say are left out
    return head | dict(event.fields)


def sse_frame(event: WireEvent) -> bytes:
    """One server-sent event: https://html.spec.whatwg.org/multipage/server-sent-events.html. JSON has no line ends."""
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (event["seq"], event["type"].encode(), strict_json(event))


def ndjson_line(event: WireEvent) -> bytes:
    """One line of https://github.com/ndjson/ndjson-spec."""
    return strict_json(event) + b"\n"


def _artifact_fields(kind: ArtifactKind, fields: Mapping[str, Any], base_url: str) -> dict[str, Any]:
    name, content_type, size_bytes = fields["name"], fields["content_type"], fields["bytes"]
    ref = ArtifactRef(ArtifactId(fields["artifact_id"]), kind, name, content_type, size_bytes)
    return {"name": name, "url": artifact_url(ref, base_url), "content_type": content_type, "bytes": size_bytes}
