"""The application as a server of this machine."""

import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.service.app import create_app
from rayssl.pipeline.service.guard import Names, is_loopback
from rayssl.pipeline.service.opened import Runs
from rayssl.pipeline.service.tokens import Door, new_token, token_from

HEADER_BYTES = 16 << 10  # of a request
IDLE_SECONDS = 15  # that a connection is kept open
LONGEST_END = 5  # seconds that requests may take to end when the server stops


def serve(
    runs: Runs,
    host: str,
    port: int,
    *,
    names: Sequence[str],
    token_file: Path | None,
    say: Callable[[str], None],
    at: Callable[[str], None],
) -> None:
    """Serve until a signal stops it. `say` is told the token where one was made, `at` the address.

    Raises UserError where the address cannot be had.
    """
    token = token_from(token_file, os.environ)
    with listening(host, port) as listener:
        port = listener.getsockname()[1]
        if token is None and not is_loopback(host):
            token = new_token()
            say(f"token    {token}")
        door = None if token is None else Door(token, port)
        at(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
        server_of(create_app(runs, names=Names(host, names), door=door)).run(sockets=[listener])


def server_of(app: FastAPI) -> uvicorn.Server:
    """A server that logs no request: an address may say what somebody looks for."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        http="h11",
        h11_max_incomplete_event_size=HEADER_BYTES,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=LONGEST_END,
    )
    return uvicorn.Server(config)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there; raises UserError where there is none to be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host {host} --port {port} cannot be had ({reason}): choose another port") from None
