"""The Python client: `Client` and `AsyncClient` run code on a gateway. It needs nothing of the server's packages.

from gateway.client import Client

with Client() as client, client.session() as session:
    session.run("x = 20")
    session.run("x + 1").text  # '21'
"""

from gateway.client.asynchronous import AsyncClient, AsyncSession
from gateway.client.blocking import Client, Session
from gateway.client.errors import (
    ClientError,
    Conflict,
    ConnectionFailed,
    Forbidden,
    Gone,
    InvalidRequest,
    NotFound,
    RunFailed,
    ServerError,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from gateway.client.results import (
    Artifact,
    BatchAnswer,
    CodeError,
    Event,
    FileInfo,
    RunResult,
    RunSummary,
    SessionInfo,
    Usage,
)

__all__ = [
    "Artifact",
    "AsyncClient",
    "AsyncSession",
    "BatchAnswer",
    "Client",
    "ClientError",
    "CodeError",
    "Conflict",
    "ConnectionFailed",
    "Event",
    "FileInfo",
    "Forbidden",
    "Gone",
    "InvalidRequest",
    "NotFound",
    "RunFailed",
    "RunResult",
    "RunSummary",
    "ServerError",
    "Session",
    "SessionInfo",
    "TooManyRequests",
    "Unauthorized",
    "Unavailable",
    "Usage",
]
