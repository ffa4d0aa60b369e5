"""The server itself: an address, a model, and requests until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Callable

import uvicorn

from spectrim.errors import SpectrimError
from spectrim.serve.app import application
from spectrim.serve.served import Served

_PATIENCE = 5.0  # seconds that answers in the making are given when the server is told to stop
_CLOSING = 3  # seconds in which the last bytes have to be taken by their clients


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
    served: Served,
    listening: socket.socket,
    key: str | None,
    started: Callable[[], None],
    said: Callable[[str], None],
) -> None:
    """Answer requests until the process is told to stop, by SIGTERM or by Ctrl-C.

    Then new requests get status 503, those in the making are given seconds to end, and what is left
    of them ends with an error. A second signal stops at once.

    started: called when it begins. said: told that it stops, and that it has stopped.
    """
    config = uvicorn.Config(
        application(served, key),
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=_CLOSING,
    )
    try:
        asyncio.run(_serve(uvicorn.Server(config), served, listening, started, said))
    finally:
        served.close()
    said("stopped")


async def _serve(
    server: uvicorn.Server,
    served: Served,
    listening: socket.socket,
    started: Callable[[], None],
    said: Callable[[str], None],
) -> None:
    work = asyncio.ensure_future(server.serve(sockets=[listening]))
    while not (server.started or work.done()):
        await asyncio.sleep(0.01)
    told = _signals(server)
    started()
    ending = asyncio.ensure_future(_end(server, served, told, said))
    await work
    ending.cancel()


def _signals(server: uvicorn.Server) -> asyncio.Event:
    """Return what is set by the first signal to stop; the second has the server stop at once."""
    told, loop = asyncio.Event(), asyncio.get_running_loop()

    def tell() -> None:
        server.should_exit = server.force_exit = told.is_set()
        told.set()

    if threading.current_thread() is threading.main_thread():  # no other may listen to signals
        for one in (signal.SIGINT, signal.SIGTERM):
            # In the place of uvicorn's own handlers; it puts back those before it at its end.
            signal.signal(one, lambda number, frame: loop.call_soon_threadsafe(tell))
    return told


async def _end(
    server: uvicorn.Server, served: Served, told: asyncio.Event, said: Callable[[str], None]
) -> None:
    await told.wait()
    until = time.monotonic() + _PATIENCE
    if left := served.scheduler.refuse():
        said(f"stopping; {left} still in the making, for {_PATIENCE:.0f} seconds at most")
    while served.scheduler.refuse() and time.monotonic() < until:
        await asyncio.sleep(0.02)
    await asyncio.to_thread(served.scheduler.end)
    server.should_exit = True
