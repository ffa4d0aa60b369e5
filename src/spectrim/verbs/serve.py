"""Serve a model on OpenAI's API, in whichever form it was made."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from spectrim.errors import SpectrimError
from spectrim.serve import Limits
from spectrim.verbs.runnable import checked_threads, runnable

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


@dataclass(frozen=True)
class Address:
    """Where the server listens, and what its clients have to know."""

    host: str = "127.0.0.1"
    port: int = 8000
    key: str | None = None


def serve(
    name: str,
    address: Address,
    limits: Limits,
    *,
    threads: int | None = None,
    cache: Path | None = None,
    said: Callable[[str], None] = print,
) -> None:
    """Serve a model until the process is told to stop, by SIGTERM or Ctrl-C.

    Args:
        name: `demo`, a model folder, a GGUF file, an ONNX folder, or a model on the hub.
        address: loopback by default.
        limits: how much is served at once.
        threads: of the engine; None for all cores.
        cache: as in ``shrink``.
        said: told where the server is once it answers, and when it stops.

    Raises:
        SpectrimError: a package is missing, a number is out of range, the address cannot be had, or
            nothing runs the model.
    """
    missing = [package for package in _PACKAGES if not find_spec(package)]
    if missing:
        raise SpectrimError(
            f"serving needs {missing[0].replace('_', '-')}; pip install 'spectrim[serve]'"
        )
    _check(address, limits)
    threads = checked_threads(threads)
    from spectrim.serve import server
    from spectrim.serve.served import opened

    # Before a model is loaded, which may take minutes.
    with server.bound(address.host, address.port) as listening:
        found = runnable(name, cache)
        served = opened(found.path, limits, threads, found.name)
        port = listening.getsockname()[1]

        def started() -> None:
            said(f"{found.name} ({found.engine}) answers at http://{address.host}:{port}/v1")
            if address.key is None and not _is_loopback(address.host):
                said("anyone who reaches this machine can use it; --api-key asks for a key")

        server.serve(served, listening, address.key, started, said)


def _check(address: Address, limits: Limits) -> None:
    if not 0 <= address.port < 2**16:
        raise SpectrimError(f"--port {address.port} is no port; expected 0 to 65535")
    if limits.slots < 1 or limits.queue < 0:
        raise SpectrimError("--slots is to be 1 or more, and --queue 0 or more")
    if limits.context is not None and limits.context < 2:
        raise SpectrimError(f"--context {limits.context} is too short; expected 2 or more")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
