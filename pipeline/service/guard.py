"""What every request has to pass before it reaches a route, and what every answer carries.

A server on loopback is within reach of every web page that its user looks at: a page may send requests to it, or call
itself by a name that leads to 127.0.0.1 (DNS rebinding). So the name that a request was sent to, and the page that sent
it, are looked at. (OWASP: Cross-Site Request Forgery Prevention, "Verifying Origin With Standard Headers"; W3C: Fetch
Metadata Request Headers.)
"""

import asyncio
import ipaddress
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rayssl.pipeline.service.metrics import Metrics
from rayssl.pipeline.service.tokens import Door

MOST_SECONDS = 60.0  # of a request, its body included
MOST_IMAGE_BYTES = 32 << 20  # of an uploaded image
MOST_JSON_BYTES = 2 << 20
MOST_HELD_BYTES = 256 << 20  # of all bodies together
RETRY_AFTER = {"Retry-After": "1"}  # seconds
IMAGE_ROUTE = "/search/image"  # ends the path of requests whose body is an image
OPEN = ("/health", "/login")  # need no token
STATIC = "/static/"
PAGES = ("/", "/login", "/docs")  # a link on another page may lead here

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

# The map is drawn in a frame of the page, by a library (regl-scatterplot) that writes functions and styles at run time.
# That frame is given numbers alone, may ask for nothing, and shows no text from elsewhere.
MAP_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; base-uri 'none'; "
        "frame-ancestors 'self'"
    ),
    "X-Frame-Options": "SAMEORIGIN",
}


class Names:
    """The names by which a server may be called: an address, or a name that is known to be its own."""

    def __init__(self, host: str, others: Sequence[str] = ()) -> None:
        self._loopback = is_loopback(host)
        self._known = {"localhost", *(name.lower().rstrip(".") for name in (host, *others))}

    def has(self, host: str) -> bool:
        """Whether a Host header, with or without a port, names this server. A rebound name is never an address."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        if name in self._known:
            return True
        return is_loopback(name) if self._loopback else is_address(name)


def is_address(name: str) -> bool:
    """Whether this is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(name: str) -> bool:
    """Whether only this machine reaches a server of that name or address."""
    return name == "localhost" or (is_address(name) and ipaddress.ip_address(name).is_loopback)


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, names: Names, door: Door | None, metrics: Metrics) -> None:
        self._app, self._names, self._door, self._metrics = app, names, door, metrics
        self._held = 0  # bytes of bodies that are being read or answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._guarded(scope, receive, send)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun, status = time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refusal = self._refusal(scope)
        try:
            if refusal is not None:
                await refusal(scope, receive, sending)
            else:
                await self._bounded(scope, receive, sending)
        except TimeoutError:
            if status == 0:
                await _refused(503, f"not done within {MOST_SECONDS:.0f} seconds", RETRY_AFTER)(scope, receive, sending)
        finally:
            self._metrics.count(scope, status, time.perf_counter() - begun)

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, with as many bytes and seconds as it may have."""
        most = MOST_IMAGE_BYTES if scope["path"].endswith(IMAGE_ROUTE) else MOST_JSON_BYTES
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            size = len(message.get("body", b""))
            taken += size
            self._held += size
            if taken > most:
                raise HTTPException(413, f"the body has more than {most >> 20} MiB")
            if self._held > MOST_HELD_BYTES:
                raise HTTPException(503, "too much is being uploaded", RETRY_AFTER)
            return message

        try:
            async with asyncio.timeout(MOST_SECONDS):
                await self._app(scope, counted, send)
        finally:
            self._held -= taken

    def _refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that may not pass."""
        headers, path = Headers(scope=scope), scope["path"]
        host = headers.getlist("host")
        if len(host) != 1 or not self._names.has(host[0]):
            return _refused(421, "this server is not known by that name: rayssl serve --allow-host NAME adds one")
        if _is_foreign(headers, host[0], is_page=scope["method"] in ("GET", "HEAD") and path in PAGES):
            return _refused(403, "requests that other web pages send are refused")
        if self._door is None or path in OPEN or path.startswith(STATIC):
            return None
        cookie = cookie_parser(headers.get("cookie", "")).get(self._door.cookie)
        if self._door.admits(headers.get("authorization"), cookie):
            return None
        if path in PAGES:
            return RedirectResponse("/login", 303)
        return _refused(401, "a token is needed: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})


def _is_foreign(headers: Headers, host: str, *, is_page: bool) -> bool:
    """Whether a browser sent a request for another web page than one of this server."""
    origin = headers.get("origin")
    if origin is not None and urlsplit_netloc(origin) != host.lower():
        return True
    if headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
        return False
    return not (is_page and headers.get("sec-fetch-mode") == "navigate")  # a link was followed


def urlsplit_netloc(origin: str) -> str | None:
    """Host and port of an Origin header; None for what is none, such as "null"."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _refused(status: int, reason: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": reason}, status, headers)
