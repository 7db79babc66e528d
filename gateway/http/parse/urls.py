"""What a URL's path names: a run, a session, a file of a session. Percent-escapes are decoded once, and only here."""

from __future__ import annotations

from urllib.parse import quote, unquote_to_bytes

from gateway.http.parse.file_paths import why_no_file
from gateway.http.parse.run_request import sane_session_id
from sessions.errors import InvalidRequest, NotFound
from sessions.model import RunId, SessionId
from sessions.sanitize import canonical_uuid


def run_id_of(text: str) -> RunId:
    """A run's id in its canonical form. Raises NotFound: nothing else names a run."""
    if (canonical := canonical_uuid(text)) is None:
        raise NotFound("There is no such run.")
    return RunId(canonical)


def run_in(path: str) -> RunId:
    """The run that `/runs/<id>…` names. Raises NotFound."""
    return run_id_of(segment(path, 2))


def session_in(path: str) -> SessionId:
    """The session that `/sessions/<id>…` names. Raises NotFound."""
    try:
        return sane_session_id(segment(path, 2))
    except InvalidRequest as error:
        raise NotFound("There is no such session.") from error


def file_in(path: str) -> str:
    """The file that `/sessions/<id>/files/<path>` names, which stays below its directory. Raises InvalidRequest."""
    raw = path.split("/", 4)[4]
    try:
        name = unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest("The file's path is not percent-encoded UTF-8.") from error
    if (why := why_no_file(name)) is not None:
        raise InvalidRequest(why)
    return name


def session_url(base_url: str, session_id: SessionId) -> str:
    """Where a session is."""
    return f"{base_url}/sessions/{quote(session_id, safe='')}"


def file_url(base_url: str, session_id: SessionId, path: str) -> str:
    """Where a file of a session is."""
    return f"{session_url(base_url, session_id)}/files/{quote(path)}"


def segment(path: str, number: int) -> str:
    """A part of a path; the first one, behind the first slash, is 1."""
    return unquote_to_bytes(path.split("/", number + 1)[number]).decode("utf-8", "replace")
