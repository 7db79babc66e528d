"""What a run displays and makes: MIME bundles in order, figures and files, each within its limits. Pure: no I/O.

Figures become artifacts, numbered by their place in the results; files arrive in pieces. The mutable state is the
bundles with their figures, the files and their content's hashes, and what was dropped.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from sessions.model import Artifact, ArtifactId, ArtifactKind, ArtifactRef
from sessions.output import media
from sessions.sanitize import cut_utf8, relative_path, well_formed, well_formed_json
from sessions.settings import Limits

_MAX_BUNDLE_PARTS = 32
_MAX_RESULTS = 1000
_STORED_PER_SHOWN = 10
_MAX_NOTICES_PER_KIND = 3
_FIGURE = re.compile(r"figure-(\d{1,9})\.")
_WHY = {
    "bytes": "it is over the size limit",
    "count": "there are too many",
    "total": "all images and files of the run together are over the limit",
    "path": "its path is too long",
    "pixels": "it has too many pixels",
    "changed": "it changed while it was being read",
    "entries": "the working directory has too many entries, or is too deep",
    "time": "it did not come in time",
    "original": "the file with the same content was dropped",
    "invalid": "it is not what it says it is",
}


@dataclass(slots=True)
class _Shown:
    """One entry of `results`, with the figures it refers to."""

    bundle: dict[str, Any]
    display_id: str | None
    number: int | None = None
    figures: dict[str, ArtifactRef] = field(default_factory=dict)


@dataclass(slots=True)
class _Assembly:
    """A file of which pieces are still to come."""

    path: str
    size_bytes: int
    data: bytearray = field(default_factory=bytearray)


class Displays:
    """Results, figures and files of one run."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._shown: list[_Shown] = []
        self._figures_made = 0
        self.left_bytes = limits.output_bytes
        self._assembly: _Assembly | None = None
        self._files: dict[str, ArtifactRef] = {}
        self._sources: dict[str, tuple[str, ArtifactRef]] = {}
        self._stored: set[bytes] = set()
        self._left_files_bytes = limits.files_bytes
        self._dropped: dict[str, int] = {}
        self._notices: dict[str, int] = {}
        self._lines: list[str] = []

    # --- MIME bundles -------------------------------------------------------------------------------------------------

    def show(self, data: Any, display_id: str | None) -> tuple[dict[str, Any], list[Artifact]]:
        """Add a bundle to the results; returns it as shown, images replaced, and the artifacts it brought."""
        if len(self._shown) >= _MAX_RESULTS:
            self._drop("results", len(str(data)), "a result", "count")
            return {}, []
        entry = _Shown({}, display_id)
        artifacts = self._fill(entry, data)
        if entry.bundle:
            self._shown.append(entry)
        return entry.bundle, artifacts

    def shows(self, display_id: str) -> bool:
        """Whether a bundle is shown under this id."""
        return any(entry.display_id == display_id for entry in self._shown)

    def update(self, data: Any, display_id: str) -> tuple[dict[str, Any], list[Artifact]]:
        """Replace every bundle that is shown under this id, as `update_display_data` asks."""
        entries = [entry for entry in self._shown if entry.display_id == display_id]
        if not entries:
            return {}, []
        first = entries[0]
        first.figures.clear()
        artifacts = self._fill(first, data)
        for entry in entries[1:]:
            entry.bundle, entry.figures = first.bundle, first.figures
        return first.bundle, artifacts

    def clear(self) -> None:
        """Forget what has been shown; figures are numbered from 1 again."""
        self._shown.clear()

    def _fill(self, entry: _Shown, data: Any) -> list[Artifact]:
        parts = list(data.items())[:_MAX_BUNDLE_PARTS] if isinstance(data, dict) else []
        bundle: dict[str, Any] = {}
        for mime, value in parts:
            if mime not in media.EXTENSIONS:
                self._add_part(bundle, well_formed(str(mime)[:256]), value)
        entry.bundle = bundle
        artifact = self._picture(entry, {mime: value for mime, value in parts if mime in media.EXTENSIONS})
        if artifact is None:
            return []
        bundle["image"] = artifact.ref.name
        entry.figures[artifact.ref.name] = artifact.ref
        return [artifact]

    def _picture(self, entry: _Shown, images: Mapping[str, Any]) -> Artifact | None:
        """One picture of a bundle, which may hold the same one in several types: the first type that can be kept."""
        dropped = []
        for mime in (mime for mime in media.EXTENSIONS if mime in images):
            artifact, why = self._figure(entry, mime, images[mime])
            if artifact is not None:
                return artifact
            dropped.append((len(images[mime]) if isinstance(images[mime], str) else 0, why))
        if dropped:
            size_bytes, why = dropped[0]
            self._drop("images", size_bytes, "a figure", why)
        return None

    def _add_part(self, bundle: dict[str, Any], mime: str, value: Any) -> None:
        """Add a part that is no image, while the results' share of the output limit lasts; plain text is cut to fit."""
        value = well_formed_json(value)
        size_bytes = len(value.encode()) if isinstance(value, str) else len(json.dumps(value))
        if size_bytes > self.left_bytes:
            kept = cut_utf8(value, self.left_bytes) if mime == "text/plain" and isinstance(value, str) else ""
            kept_bytes = len(kept.encode())
            self._drop("results", size_bytes - kept_bytes, f"a result of type {mime}", "bytes")
            if not kept:
                return
            value, size_bytes = kept, kept_bytes
        self.left_bytes -= size_bytes
        bundle[mime] = value

    def _figure(self, entry: _Shown, mime: str, value: Any) -> tuple[Artifact | None, str]:
        """A displayed image as an artifact, or why not. Base64, or text for SVG, as the messaging protocol has it."""
        text = value if isinstance(value, str) else ""
        try:
            data = text.encode() if mime == "image/svg+xml" else _decode_base64(text)
        except (binascii.Error, ValueError):
            data = b""
        content_type = media.sniff(data)
        why = self._why_not(data, content_type)
        if content_type is None or why:
            return None, why or "invalid"
        number = entry.number or 1 + max((shown.number or 0 for shown in self._shown), default=0)
        name = f"figure-{number}.{media.EXTENSIONS[content_type]}"
        artifact = self._artifact(ArtifactKind.IMAGE, name, content_type, data)
        if artifact is None:
            return None, "total"
        self._figures_made += 1
        entry.number = number
        return artifact, ""

    def _why_not(self, data: bytes, content_type: str | None) -> str | None:
        """Which limit an image breaks, if any."""
        if content_type is None:
            return "invalid"
        if len(data) > self._limits.image_bytes:
            return "bytes"
        most = self._limits.image_count
        if self._image_count() >= most or self._figures_made >= most * _STORED_PER_SHOWN:
            return "count"
        pixels = media.count_pixels(data, content_type)
        if pixels is None:
            return "invalid"
        return "pixels" if pixels > self._limits.image_pixels else None

    def _image_count(self) -> int:
        figures = sum(len(entry.figures) for entry in self._shown)
        return figures + sum(ref.kind is ArtifactKind.IMAGE for ref in self._files.values())

    def _file_count(self) -> int:
        return sum(ref.kind is ArtifactKind.FILE for ref in self._files.values())

    # --- again, from events -------------------------------------------------------------------------------------------

    def replay_shown(self, bundle: Mapping[str, Any], display_id: str | None) -> None:
        """A bundle was added to the results; the figures in it have been replayed just before."""
        entry = _Shown(dict(bundle), display_id)
        self._shown.append(entry)
        self._give_figures(entry)

    def replay_update(self, bundle: Mapping[str, Any], display_id: str) -> None:
        """A bundle has replaced those under its id."""
        entries = [entry for entry in self._shown if entry.display_id == display_id]
        for entry in entries[:1]:
            entry.figures.clear()
            entry.bundle = dict(bundle)
            self._give_figures(entry)
        for entry in entries[1:]:
            entry.bundle, entry.figures = entries[0].bundle, entries[0].figures

    def replay_artifact(self, ref: ArtifactRef) -> None:
        """An image or a file was kept. Figures come right before the bundle that shows them."""
        self._files[ref.name] = ref

    def _give_figures(self, entry: _Shown) -> None:
        """Move the figures replayed last from the files to the bundle that shows them: `image` names the first."""
        first = entry.bundle.get("image")
        number = _FIGURE.match(first) if isinstance(first, str) and first in self._files else None
        if number is None:
            return
        names = list(self._files)
        for name in names[names.index(number.string) :]:
            entry.figures[name] = self._files.pop(name)
            self._figures_made += 1
        entry.number = int(number[1])

    def state(self) -> dict[str, Any]:
        """What the events do not say, JSON-ready."""
        return {
            "left_bytes": self.left_bytes,
            "dropped": dict(self._dropped),
            "notices": dict(self._notices),
            "told": list(self._lines),
            "left_files_bytes": self._left_files_bytes,
            "sources": {path: [sha256, ref.name] for path, (sha256, ref) in self._sources.items()},
            # The keys are stored: they stay.
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self.left_bytes = state.get("left_bytes", self.left_bytes)
        self._dropped, self._notices = dict(state.get("dropped", {})), dict(state.get("notices", {}))
        self._lines = list(state.get("told", ()))
        self._left_files_bytes = state.get("left_files_bytes", self._left_files_bytes)
        sources = state.get("sources", {}).items()
        self._sources = {path: (sha256, self._files[name]) for path, (sha256, name) in sources if name in self._files}

    # --- files --------------------------------------------------------------------------------------------------------

    def add_piece(self, content: Mapping[str, Any], buffers: tuple[bytes, ...]) -> Artifact | None:
        """Add one piece of a file; returns the artifact when it was the last one.

        Pieces come in order, one file after the other; whatever does not is dropped.
        """
        path, size_bytes, offset = relative_path(content.get("path")), content.get("bytes"), content.get("offset")
        largest = max(self._limits.image_bytes, self._limits.file_bytes)
        if path is None or type(size_bytes) is not int or not 0 <= size_bytes <= largest or len(buffers) != 1:
            return None
        if (original := content.get("same_as")) is not None:
            return self._copy(path, original)
        if offset == 0:
            self._assembly = _Assembly(path, size_bytes)
        assembly = self._assembly
        if assembly is None or assembly.path != path or offset != len(assembly.data):
            return None
        assembly.data += buffers[0][: size_bytes - len(assembly.data)]
        if len(assembly.data) < size_bytes:
            return None
        self._assembly = None
        return self._file(path, bytes(assembly.data))

    def is_assembling(self) -> bool:
        """Whether pieces of a file are still to come."""
        return self._assembly is not None

    def skip(self, skipped: Sequence[Mapping[str, Any]]) -> None:
        """Note files that were not sent; each has `path`, `bytes` and `why`."""
        for item in skipped:
            size_bytes, why = item.get("bytes"), item.get("why")
            path = relative_path(item.get("path")) or ("whatever else the run made" if why == "time" else "a file")
            what = "images" if media.guess(path) in media.EXTENSIONS else "files"
            self._drop(what, size_bytes if type(size_bytes) is int and size_bytes > 0 else 0, path, str(why))

    def _file(self, path: str, data: bytes) -> Artifact | None:
        """A complete file: an image when its name and its bytes both say so."""
        content_type = media.sniff(data) if media.guess(path) in media.EXTENSIONS else None
        if content_type is not None and media.is_whole(data, content_type):
            if why := self._why_not(data, content_type):
                self._drop("images", len(data), path, why)
                return None
            return self._keep_file(ArtifactKind.IMAGE, path, content_type, data)
        if len(data) > self._limits.file_bytes:
            self._drop("files", len(data), path, "bytes")
            return None
        if self._file_count() >= self._limits.file_count:
            self._drop("files", len(data), path, "count")
            return None
        return self._keep_file(ArtifactKind.FILE, path, media.guess(path), data)

    def _copy(self, path: str, original: Any) -> Artifact | None:
        """A file with the content of one that has come before."""
        sha256, source = self._sources.get(original, (None, None)) if isinstance(original, str) else (None, None)
        if sha256 is None or source is None:  # that one was dropped, and why has been told
            self._drop("files", 0, path, "original")
            return None
        is_image = source.kind is ArtifactKind.IMAGE
        kept = self._image_count() if is_image else self._file_count()
        if kept >= (self._limits.image_count if is_image else self._limits.file_count):
            self._drop("images" if is_image else "files", source.size_bytes, path, "count")
            return None
        content_type = source.content_type if is_image else media.guess(path)
        ref = self._ref(source.kind, self._name_of(path), content_type, source.size_bytes)
        self._files[ref.name] = ref
        return Artifact(ref, b"", bytes.fromhex(sha256))

    def _keep_file(self, kind: ArtifactKind, path: str, content_type: str, data: bytes) -> Artifact | None:
        artifact = self._artifact(kind, self._name_of(path), content_type, data)
        if artifact is None:
            self._drop("images" if kind is ArtifactKind.IMAGE else "files", len(data), path, "total")
            return None
        self._files[artifact.ref.name] = artifact.ref
        if artifact.sha256 is not None:
            self._sources[path] = (artifact.sha256.hex(), artifact.ref)
        return artifact

    def _name_of(self, path: str) -> str:
        """A file may have the very name of a displayed figure; both are kept, under two names for the two."""
        return f"./{path}" if any(path in entry.figures for entry in self._shown) else path

    def _artifact(self, kind: ArtifactKind, name: str, content_type: str, data: bytes) -> Artifact | None:
        """Content that the run has already is not stored again; None when there is too much of it."""
        sha256 = hashlib.sha256(data).digest()
        ref = self._ref(kind, name, content_type, len(data))
        if sha256 in self._stored:
            return Artifact(ref, b"", sha256)
        if len(data) > self._left_files_bytes:
            return None
        self._left_files_bytes -= len(data)
        self._stored.add(sha256)
        return Artifact(ref, data, sha256)

    def _ref(self, kind: ArtifactKind, name: str, content_type: str, size_bytes: int) -> ArtifactRef:
        return ArtifactRef(ArtifactId(str(uuid4())), kind, name, content_type, size_bytes)

    # --- the answer ---------------------------------------------------------------------------------------------------

    def results(self) -> tuple[Mapping[str, Any], ...]:
        """The bundles in order, as they stand now."""
        return tuple(entry.bundle for entry in self._shown)

    def images(self) -> dict[str, ArtifactRef]:
        """Displayed figures and image files, by name."""
        figures = {name: ref for entry in self._shown for name, ref in entry.figures.items()}
        return figures | {name: ref for name, ref in self._files.items() if ref.kind is ArtifactKind.IMAGE}

    def files(self) -> dict[str, ArtifactRef]:
        """All other files, by name."""
        return {name: ref for name, ref in self._files.items() if ref.kind is ArtifactKind.FILE}

    def dropped(self) -> dict[str, int]:
        """What was dropped, in bytes, by kind: results, images, files."""
        return dict(self._dropped)

    def notices(self) -> list[str]:
        """A line for each of the first few things that were dropped, and one that counts the others."""
        lines = list(self._lines)
        for what, count in self._notices.items():
            if count > _MAX_NOTICES_PER_KIND:
                lines.append(f"{count - _MAX_NOTICES_PER_KIND} more {what} were dropped")
        return lines

    def _drop(self, what: str, size_bytes: int, name: str, why: str) -> None:
        self._dropped[what] = self._dropped.get(what, 0) + size_bytes
        self._notices[what] = self._notices.get(what, 0) + 1
        if self._notices[what] <= _MAX_NOTICES_PER_KIND:
            self._lines.append(f"{name} was dropped: {_WHY.get(why, 'it could not be read')}")


def _decode_base64(text: str) -> bytes:
    """Raises ValueError. Splitting at the white space would take 0.3 s where every second character is some."""
    return base64.b64decode(text.encode("ascii").translate(None, b" \t\n\v\f\r"), validate=True)
