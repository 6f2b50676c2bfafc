"""The HTTP application: every route."""

import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as AnyHTTPException

from rayssl.pipeline import __version__
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.terminal import plain, say
from rayssl.pipeline.data.decode import read_header
from rayssl.pipeline.search.apply import searched_by
from rayssl.pipeline.service import login, messages, reference, searches, tags
from rayssl.pipeline.service.batches import BusyError, Embedder
from rayssl.pipeline.service.guard import MAP_HEADERS, MOST_IMAGE_BYTES, RETRY_AFTER, Guard, Names
from rayssl.pipeline.service.maps import Maps
from rayssl.pipeline.service.messages import DEFAULT_NEIGHBORS, LARGEST_ID, Answer, Item, K, Problem, Question
from rayssl.pipeline.service.metrics import Metrics
from rayssl.pipeline.service.opened import Runs, View
from rayssl.pipeline.service.pictures import NoPictureError, Picture
from rayssl.pipeline.service.tokens import Door

MOST_PIXELS = 1 << 26  # of an uploaded image, times its channels beyond 4: 67 megapixels
A_YEAR = 31_536_000  # seconds

PICTURES: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}, "image/jpeg": {}}}}
TABLE: dict[int | str, dict[str, Any]] = {200: {"content": {"text/csv": {}}}}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in {
        400: "what is asked for cannot be searched for",
        401: "a token is needed",
        403: "another web page sent the request",
        404: "there is no such run or image",
        413: "more bytes or pixels than are taken",
        421: "the server is not known by that name",
        422: "a value is wrong; the text says which",
        503: "too much is asked for at once: try again after the seconds of Retry-After",
    }.items()
}


def create_app(runs: Runs, *, names: Names, door: Door | None = None, embedder: Embedder | None = None) -> FastAPI:
    """The application over some runs, called by some names, for who passes the door, if there is one."""
    metrics = Metrics()
    embedder = embedder or Embedder(metrics.saw)
    metrics.watch_queue(embedder.waiting)
    app = FastAPI(
        title="rayssl",
        version=__version__,
        description="Search the images of rayssl's runs.",
        docs_url=None,  # Its page loads scripts from elsewhere
        redoc_url=None,
        lifespan=_lifespan,
        responses=PROBLEMS,
    )
    app.state.runs, app.state.embedder, app.state.metrics, app.state.ready = runs, embedder, metrics, False
    app.state.maps = Maps()
    add_operation(app)
    add_runs(app)
    add_tags(app)
    login.add_to(app, door)
    add_page(app)
    app.add_middleware(Guard, names=names, door=door, metrics=metrics)
    app.add_exception_handler(AnyHTTPException, _told_http)
    app.add_exception_handler(RequestValidationError, _told_value)
    app.add_exception_handler(UserError, _told_input)
    app.add_exception_handler(BusyError, _told_busy)
    app.add_exception_handler(NoPictureError, _told_picture)
    app.add_exception_handler(Exception, _told_fault)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    runs, embedder = app.state.runs, app.state.embedder
    embedder.start()
    threading.Thread(target=_begin, args=(app,), name="watch", daemon=True).start()
    yield
    runs.stop()
    app.state.maps.stop()
    embedder.stop()


def _begin(app: FastAPI) -> None:
    """Load what queries need; then look after changes."""
    for name, served in app.state.runs.by_name.items():
        try:
            _ = served.view.opened.encode
        except UserError as error:  # its own images are still found by their ids
            say(f"{name}: images cannot be searched by: {error}", file=sys.stderr)
    app.state.ready = True
    app.state.runs.watch()


# How the service is


def add_operation(app: FastAPI) -> None:
    """Routes for whoever operates the service."""

    @app.get("/health", tags=["operation"])
    def health() -> messages.Status:
        """The process answers."""
        return messages.Status(status="ok")

    @app.get("/ready", tags=["operation"])
    def ready() -> messages.Status:
        """The encoders are loaded: images are answered at once. Until then 503."""
        if not app.state.ready:
            raise HTTPException(503, "the encoders are being loaded", RETRY_AFTER)
        return messages.Status(status="ready")

    @app.get("/metrics", tags=["operation"], response_class=PlainTextResponse)
    def metrics() -> Response:
        """For Prometheus."""
        return Response(app.state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(reference.page(app.openapi()))


# The runs and their images


def _run(request: Request, run: Annotated[str, Path(max_length=255)]) -> View:
    runs: Runs = request.app.state.runs
    try:
        return runs[run]
    except KeyError:
        raise HTTPException(404, "no run of that name is served: /api/runs lists them") from None


def _row(view: Annotated[View, Depends(_run)], id: Annotated[str, Path(pattern="^[0-9]{1,19}$")]) -> int:
    row = int(view.opened.items.rows(np.array([_number(id)]))[0])
    if row < 0:
        raise HTTPException(404, "no image of that id is indexed")
    return row


def _number(id: str) -> int:
    number = int(id)
    if number > LARGEST_ID:
        raise HTTPException(404, "no image of that id is indexed")
    return number


AView = Annotated[View, Depends(_run)]
ARow = Annotated[int, Depends(_row)]


def add_runs(app: FastAPI) -> None:
    """Routes of the runs, their images, and the search."""

    @app.get("/api/runs", tags=["runs"])
    def list_runs() -> list[messages.RunSummary]:
        """Every run that is served."""
        runs: Runs = app.state.runs
        return [_summary(name, served.view) for name, served in runs.by_name.items()]

    @app.get("/api/runs/{run}", tags=["runs"])
    def describe_run(run: str, view: AView) -> messages.RunInformation:
        """What a run is searched by, its splits and labels."""
        return _information(run, view)

    @app.get("/api/runs/{run}/items", tags=["images"])
    def list_items(
        view: AView,
        k: Annotated[K, Query()] = DEFAULT_NEIGHBORS,
        start: Annotated[int, Query(ge=0, le=LARGEST_ID, description="how many to pass over")] = 0,
        id: Annotated[list[messages.Id], Query(max_length=messages.MOST_IDS, description="just these")] = [],  # noqa: B006
        split: Annotated[messages.Names, Query()] = [],  # noqa: B006  FastAPI copies it
        label: Annotated[messages.Names, Query()] = [],  # noqa: B006
    ) -> list[Item]:
        """Indexed images in the order of their ids, which is like a random one that stays; or those of some ids."""
        if id:
            return [Item(**searches.told(view, int(one), _row(view, one))) for one in id]
        return [Item(**one) for one in searches.listed(view, start, k, view.matching(split, label))]

    @app.get("/api/runs/{run}/items/{id}", tags=["images"])
    def describe_item(view: AView, row: ARow, id: str) -> Item:
        """Path, label and split of an indexed image."""
        return Item(**searches.told(view, int(id), row))

    @app.get("/api/runs/{run}/items/{id}/thumbnail", tags=["images"], response_class=Response, responses=PICTURES)
    def thumbnail(view: AView, row: ARow, version: str = "") -> Response:
        """A small picture of an indexed image, at most 160 pixels on its shorter side."""
        return _picture(view, version, view.pictures.thumbnail(row))

    @app.get("/api/runs/{run}/items/{id}/image", tags=["images"], response_class=Response, responses=PICTURES)
    def image(view: AView, row: ARow, version: str = "") -> Response:
        """An indexed image, at most 1,024 pixels on its shorter side."""
        return _picture(view, version, view.pictures.large(row))

    @app.get("/api/runs/{run}/map", tags=["images"])
    def map_of(run: str, view: AView) -> messages.MapPoints:
        """A place for every image. Made at the first request and kept in the run folder; 503 until it is there."""
        found: messages.MapPoints | None = app.state.maps.of(run, view)
        if found is None:
            raise HTTPException(503, "the map is being made", {"Retry-After": "2"})
        return found

    @app.post("/api/runs/{run}/search", tags=["search"])
    def search(run: str, view: AView, question: Question) -> Answer:
        """Images like some indexed ones and not like others, or nearest to a vector."""
        like, unlike = ([_number(one) for one in ids] for ids in (question.like, question.unlike))
        if question.vector is None:
            vector = searches.like_these(view, like, unlike)
        elif like or unlike:
            raise UserError("images and a vector to search for: give one of them")
        else:
            vector = searches.checked(view, question.vector)
        among = view.matching(question.splits, question.labels)
        return Answer(
            run=run,
            version=view.version,
            neighbors=searches.nearest(view, vector, question.k, [*like, *unlike], among),
        )

    @app.post("/api/runs/{run}/search/image", tags=["search"], openapi_extra=_IMAGE_BODY)
    async def search_image(
        request: Request,
        run: str,
        view: AView,
        k: Annotated[K, Query()] = DEFAULT_NEIGHBORS,
        split: Annotated[messages.Names, Query()] = [],  # noqa: B006  FastAPI copies it
        label: Annotated[messages.Names, Query()] = [],  # noqa: B006
    ) -> Answer:
        """Images like an uploaded one: its file is the body, JPEG, PNG or what else the run could be made of."""
        body = await request.body()
        await run_in_threadpool(_check_image, body)
        vector = await app.state.embedder.embed(view.opened, body)
        among = view.matching(split, label)
        neighbors = await run_in_threadpool(searches.nearest, view, vector, k, (), among)
        return Answer(run=run, version=view.version, neighbors=neighbors, vector=vector.tolist())


def add_tags(app: FastAPI) -> None:
    """Routes of what people note of images."""

    @app.get("/api/runs/{run}/tags", tags=["tags"])
    def list_tags(view: AView) -> messages.Tags:
        """The tag of every tagged image."""
        return messages.Tags(tags=tags.read_tags(view.opened))

    @app.put("/api/runs/{run}/tags", tags=["tags"])
    def tag(view: AView, tagging: messages.Tagging) -> messages.Tags:
        """Tag images, or take their tags away. Answered when it is on the disk; the answer holds all tags."""
        for one in tagging.ids:
            _row(view, one)
        return messages.Tags(tags=tags.set_tags(view.opened, dict.fromkeys(tagging.ids, tagging.tag)))

    @app.get("/api/runs/{run}/tags.csv", tags=["tags"], response_class=Response, responses=TABLE)
    def export_tags(view: AView) -> Response:
        """The columns path and label: `--data.labels FILE` takes it."""
        content = tags.as_csv(view.opened, tags.read_tags(view.opened))
        headers = {"Content-Disposition": 'attachment; filename="tags.csv"'}
        return Response(content, media_type="text/csv; charset=utf-8", headers=headers)


_IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        "description": f"an image file of at most {MOST_IMAGE_BYTES >> 20} MiB",
    }
}


def _check_image(body: bytes) -> None:
    """Raises UserError for what is no image, HTTPException for one with too many pixels; decodes nothing."""
    if not body:
        raise UserError("the body is empty: send the bytes of an image")
    header = read_header(body)
    if header.height * header.width * max(1, header.channels // 4) > MOST_PIXELS:
        raise HTTPException(413, f"the image has {header.width} × {header.height} pixels: at most {MOST_PIXELS:,}")


def _summary(name: str, view: View) -> messages.RunSummary:
    return messages.RunSummary(name=name, data=view.opened.name, images=len(view.opened))


def _information(name: str, view: View) -> messages.RunInformation:
    return messages.RunInformation(
        **_summary(name, view).model_dump(),
        version=view.version,
        dim=view.opened.dim,
        searched_by=[part.seen.name for part in searched_by(view.opened.run).vectors.parts],
        splits=view.split_counts,
        labels=[
            messages.Label(name=label, images=images) for (_, label), images in zip(view.labels, view.label_counts)
        ],
    )


def _picture(view: View, version: str, picture: Picture) -> Response:
    """Browsers keep what is asked for by the version that it is of."""
    kept = f"private, max-age={A_YEAR}, immutable" if version == view.version else "no-store"
    return Response(picture.content, media_type=picture.kind, headers={"Cache-Control": kept})


# The page


def add_page(app: FastAPI) -> None:
    """The page and its files, which are built from `web/`."""
    folder = files(__package__) / "static"
    app.mount("/static", StaticFiles(directory=str(folder)), name="static")
    page, drawing = ((folder / name).read_text(encoding="utf-8") for name in ("index.html", "map.html"))

    @app.get("/", include_in_schema=False)
    def index() -> HTMLResponse:
        return HTMLResponse(page)

    @app.get("/map", include_in_schema=False)
    def drawn_map() -> HTMLResponse:
        return HTMLResponse(drawing, headers=MAP_HEADERS)


# What is told of what goes wrong


def _problem(status: int, reason: str, headers: Any = None) -> JSONResponse:
    return JSONResponse({"error": plain(reason)}, status, headers)


def _told_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, AnyHTTPException)
    return _problem(error.status_code, str(error.detail), error.headers)


def _told_value(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    wrong = error.errors()[0]
    place = ".".join(str(part) for part in wrong["loc"][1:]) or "the body"
    return _problem(422, f"{place[:100]}: {wrong['msg']}")


def _told_input(request: Request, error: Exception) -> Response:
    return _problem(400, str(error))


def _told_busy(request: Request, error: Exception) -> Response:
    return _problem(503, str(error), RETRY_AFTER)


def _told_picture(request: Request, error: Exception) -> Response:
    return _problem(404, str(error))


def _told_fault(request: Request, error: Exception) -> Response:
    """The traceback goes to the server's log."""
    return _problem(500, "internal error: the server's log says more")
