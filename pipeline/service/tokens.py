"""The token that a server outside of loopback asks for: where it is from, and who has it.

It is sent in the header `Authorization: Bearer …`, or is given once to the login page, which sets a cookie. The cookie
does not hold it, but a hash that nobody can turn back.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from rayssl.pipeline.base.documents import DamagedError, read_bytes
from rayssl.pipeline.base.errors import UserError

VARIABLE = "RAYSSL_TOKEN"
SHORTEST, LONGEST = 16, 256  # characters


def new_token() -> str:
    """A random one of 256 bits."""
    return secrets.token_urlsafe(32)


def token_from(file: Path | None, environment: Mapping[str, str]) -> str | None:
    """The token that a file or RAYSSL_TOKEN holds; None where neither is given. Raises UserError, never with it."""
    if file is not None:
        try:
            return _checked(read_bytes(file, most=4096).decode("ascii", "replace").strip(), f"--token-file {file}")
        except (OSError, DamagedError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"--token-file {file} cannot be read ({reason}): name a file with a token in it") from None
    return _checked(environment[VARIABLE], VARIABLE) if VARIABLE in environment else None


def _checked(token: str, place: str) -> str:
    if re.fullmatch(rf"[!-~]{{{SHORTEST},{LONGEST}}}", token) is None:
        raise UserError(f"{place}: a token is {SHORTEST} to {LONGEST} letters, digits or signs without spaces")
    return token


class Door:
    """Tells who has the token."""

    def __init__(self, token: str, port: int) -> None:
        self._token = token.encode()
        self.cookie = f"rayssl-{port}"  # cookies do not tell ports apart
        self.secret = hmac.new(self._token, b"the cookie of the page", hashlib.sha256).hexdigest()

    def is_token(self, given: str) -> bool:
        """Whether this is the token; takes as long either way."""
        return hmac.compare_digest(given.encode("utf-8", "replace"), self._token)

    def admits(self, authorization: str | None, cookie: str | None) -> bool:
        """Whether a request with this header, or the value of this cookie, may pass."""
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() == "bearer" and self.is_token(given.strip()):
            return True
        return cookie is not None and hmac.compare_digest(cookie.encode("utf-8", "replace"), self.secret.encode())
