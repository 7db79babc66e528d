"""`/runcode/batch`: its body and its lines, as types that only the description uses."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from gateway.http.description.answers import RunAnswer, Uuid
from gateway.http.parse.batch_request import MAX_ITEMS, ItemFields
from sessions.model import RunStatus

ItemId = Annotated[str, Meta(max_length=128)] | int
StatusCode = Annotated[int, Meta(ge=200, le=599)]


class BatchItem(ItemFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A run of a batch: the fields of `POST /runcode`, but `stream`, and two more."""

    id: ItemId | None = None
    """What its answer is called; its place, from 0, unless given."""


class BatchBody(Struct, forbid_unknown_fields=True):
    """Many runs."""

    runs: Annotated[list[BatchItem], Meta(min_length=1, max_length=MAX_ITEMS)]
    """In the order in which those of one session run."""


class BatchLine(RunAnswer, kw_only=True):
    """The answer of an item: that of its run, or `error`, `code` and `request_id` where it was refused."""

    id: ItemId
    """The item's."""
    status_code: StatusCode
    """What `POST /runcode` would have answered with."""
    run_id: Uuid | UnsetType = UNSET  # type: ignore[assignment]
    """Its run. What was refused has none."""
    status: RunStatus | UnsetType = UNSET  # type: ignore[assignment]
    """How the run ended."""
    output: str | UnsetType = UNSET  # type: ignore[assignment]
    """What was written to stdout, and nothing else."""
    code: str | UnsetType = UNSET
    """As in an error: why it was refused, or `timeout`."""
    request_id: str | UnsetType = UNSET
    """As in an error: that of the batch."""
