"""The server itself: an address, a model, and requests until it is told to stop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import uvicorn

from spectrim.errors import SpectrimError
from spectrim.serve.app import application
from spectrim.serve.served import Served

_PATIENCE = 3  # seconds that answers in progress are given when the server is told to stop


def bound(host: str, port: int) -> socket.socket:
    """Return a socket on an address, before a model is loaded; port 0 takes a free one.

    Raises:
        SpectrimError: the address is taken, or not one of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:  # the second of what is no name of a machine
        raise _refused(host, port, error) from error
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        raise _refused(host, port, error) from error
    return found


def _refused(host: str, port: int, error: OSError | UnicodeError) -> SpectrimError:
    reason = error.strerror if isinstance(error, OSError) else "it is no name of a machine"
    return SpectrimError(
        f"cannot listen on {host}, port {port} ({reason}); name another --port or --host"
    )


def serve(
    served: Served, listening: socket.socket, key: str | None, started: Callable[[], None]
) -> None:
    """Answer requests until the process is interrupted; started is called when it begins."""
    config = uvicorn.Config(
        application(served, key),
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=_PATIENCE,
    )
    try:
        asyncio.run(_serve(uvicorn.Server(config), listening, started))
    finally:
        served.close()


async def _serve(
    server: uvicorn.Server, listening: socket.socket, started: Callable[[], None]
) -> None:
    work = asyncio.ensure_future(server.serve(sockets=[listening]))
    while not (server.started or work.done()):
        await asyncio.sleep(0.01)
    started()
    await work
