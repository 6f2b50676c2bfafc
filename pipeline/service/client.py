"""A client of a server that `rayssl serve` started: the same questions and answers as of an index that is opened here.

server = rayssl.connect("http://127.0.0.1:8000")
server.search("holiday.jpg", k=10)  # [{"query": …, "neighbors": [{"rank": 1, "id": …, …}]}]
"""

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlencode, urlsplit

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.terminal import plain
from rayssl.pipeline.data.regular import read_regular
from rayssl.pipeline.search.queries import Asked, images_of
from rayssl.pipeline.search.query import Answer, refuse_unread

LARGEST = 64 << 20  # bytes of an answer
TIMEOUT = 60.0  # seconds


class _StaysHere(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the token elsewhere."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@dataclass(frozen=True)
class Server:
    """A server, and which of its runs is asked."""

    url: str  # http://HOST:PORT
    token: str | None = field(default=None, repr=False)
    run: str | None = None  # needed where it serves several

    def runs(self) -> list[dict[str, Any]]:
        """[{"name", "data", "images"}] of every run that is served."""
        found = self._asked("/api/runs")
        if not isinstance(found, list) or not all(isinstance(one, dict) and "name" in one for one in found):
            raise self._other()
        return found

    def search(
        self,
        images: Any = None,
        *,
        like: Sequence[int | str] = (),
        unlike: Sequence[int | str] = (),
        k: int = 10,
        splits: Sequence[str] = (),
        labels: Sequence[str] = (),
    ) -> list[Answer]:
        """For each image, in any form that `OpenIndex.search` takes, its k nearest; or those like some indexed ones.

        `like` and `unlike` are ids of indexed images; `splits` and `labels` say which images are looked among. An
        image that cannot be read has `"error": why` and no neighbours. Raises UserError where none can, for what the
        server refuses, and where it does not answer.
        """
        place = f"/api/runs/{quote(self._name(), safe='')}/search"
        if images is None:
            question = {"like": [*map(str, like)], "unlike": [*map(str, unlike)], "k": k}
            found = self._asked(place, json.dumps({**question, "splits": [*splits], "labels": [*labels]}).encode())
            return [{"query": ", ".join(map(str, like)), "neighbors": self._neighbors(found)}]
        words = urlencode([("k", k), *(("split", one) for one in splits), *(("label", one) for one in labels)])
        asked = images_of(images)
        answers = [self._search_image(f"{place}/image?{words}", one) for one in asked]
        refuse_unread(asked)
        return answers

    def _search_image(self, place: str, asked: Asked) -> Answer:
        if asked.problem is None:
            try:
                image = read_regular(asked.source) if isinstance(asked.source, Path) else asked.source
                return {"query": asked.name, "neighbors": self._neighbors(self._asked(place, image, of_image=True))}
            except _NoImageError as error:
                asked.problem = f"{asked.name}: {error}"
            except OSError as error:
                asked.problem = f"{asked.name} cannot be read: {error.strerror}"
        return {"query": asked.name, "error": asked.problem, "neighbors": []}

    def _name(self) -> str:
        """Of the run that is asked."""
        if self.run is not None:
            return self.run
        names = [str(run["name"]) for run in self.runs()]
        if not names:
            raise self._other()
        if len(names) != 1:
            raise UserError(f"{self.url} serves several runs: name one of {', '.join(map(plain, names))}")
        return names[0]

    def _asked(self, place: str, body: bytes | None = None, *, of_image: bool = False) -> Any:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        if body is not None:
            headers["Content-Type"] = "application/octet-stream" if of_image else "application/json"
        request = urllib.request.Request(f"{self.url.rstrip('/')}{place}", body, headers)
        opener = urllib.request.build_opener(_StaysHere)
        try:
            with opener.open(request, timeout=TIMEOUT) as answer:
                return self._parsed(answer)
        except urllib.error.HTTPError as error:
            reason = _reason(error)
            if of_image and error.code in (400, 413):
                raise _NoImageError(reason) from None
            raise UserError(f"{self.url} says {error.code}: {reason}") from None
        except (OSError, HTTPException) as error:
            why = getattr(error, "reason", None) or error
            raise UserError(f"{self.url} does not answer ({plain(why)}): is `rayssl serve` running there?") from None

    def _parsed(self, answer: HTTPResponse) -> Any:
        content = answer.read(LARGEST + 1)
        try:
            return json.loads(content) if len(content) <= LARGEST else None
        except (ValueError, RecursionError):
            raise self._other() from None

    def _neighbors(self, found: Any) -> list[dict[str, Any]]:
        """As `OpenIndex.search` tells them: ids as numbers too."""
        try:
            return [_told(one) for one in found["neighbors"]]
        except (TypeError, KeyError, ValueError):
            raise self._other() from None

    def _other(self) -> UserError:
        """What is asked is no server of rayssl."""
        return UserError(f"{self.url} does not answer as rayssl does: give the address of `rayssl serve`")


class _NoImageError(UserError):
    """The server takes this for no image."""


def connect(url: str, token: str | None = None, run: str | None = None) -> Server:
    """A server at http://HOST:PORT; raises UserError for another address. Nothing is asked yet.

    `token`: what the server asks for; `run`: which of its runs is searched, where it has several.
    """
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and parts.hostname and not parts.query and not parts.username
        fits = fits and parts.port != 0  # reading it raises ValueError where it is no port
    except ValueError:
        fits = False
    if not fits:
        raise UserError(f"{url} is no address of a server: give http://HOST:PORT")
    return Server(url, token, run)


def _told(one: Any) -> dict[str, Any]:
    """A neighbour as the server tells it; raises ValueError and the like where it is none."""
    if not isinstance(one["path"], str) or not isinstance(one["label"], str | int | None):
        raise ValueError
    return {**one, "id": int(one["id"]), "id_str": one["id"], "rank": int(one["rank"]), "score": float(one["score"])}


def _reason(error: IO[bytes]) -> str:
    try:
        return plain(json.loads(error.read(1 << 16))["error"])
    except (ValueError, KeyError, TypeError, OSError):
        return "no reason is given"
