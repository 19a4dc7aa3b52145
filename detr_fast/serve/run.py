"""Serving until a signal ends it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import uvicorn

from detr_fast.engine import Detector
from detr_fast.serve.app import ServeOptions, create_app

LOOPBACK_NAMES = ("localhost", "127.0.0.1")
GRACE = 60  # seconds that questions which have begun may take after the signal


def serve(
    detector: Detector,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    options: ServeOptions | None = None,
    echo: Callable[[str], object] = print,
) -> None:
    """Serves a detector until SIGINT or SIGTERM; questions that have begun are answered before it ends.

    Args:
        detector: see `create_app`.
        host: address to listen at; on loopback only requests that name it so are answered.
        port: 0 takes a free one.
        options: see `create_app`.
        echo: told the address once it answers.

    Raises:
        OSError: the address is taken or not of this machine.
    """
    options = options or ServeOptions()
    if options.allowed_hosts is None and host in LOOPBACK_NAMES:
        options = replace(options, allowed_hosts=LOOPBACK_NAMES)
    with listen(host, port) as listener:
        config = uvicorn.Config(
            create_app(detector, options),
            log_config=None,  # uvicorn's own closes the handlers of others
            log_level="warning",
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=GRACE,
        )
        bound = listener.getsockname()[1]
        name = f"[{host}]" if ":" in host else host
        server = Server(config, lambda: echo(f"serving at http://{name}:{bound}"))
        with suppress(KeyboardInterrupt):  # which the server has heeded, and passes on
            server.run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A socket that waits for clients.

    Raises:
        OSError: the address is taken or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends at once (TCP_NODELAY) where the protocol is named; else halves of answers wait 40 ms
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise OSError(f"host, port: cannot listen at {host}:{port}: {error.strerror or error}") from error
    return listener


class Server(uvicorn.Server):
    """Tells when it answers."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], object]) -> None:
        super().__init__(config)
        self.ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to answer."""
        await super().startup(sockets)
        if self.started:
            self.ready()
