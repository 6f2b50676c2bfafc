"""The page that asks for the token, and the cookie that it sets."""

from html import escape
from importlib.resources import files
from urllib.parse import parse_qs

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from rayssl.pipeline.service.tokens import Door

WEEK = 7 * 86_400  # seconds


def add_to(app: FastAPI, door: Door | None) -> None:
    """The login page; without a door it leads to the page at once."""

    @app.get("/login", include_in_schema=False)
    def show() -> Response:
        return RedirectResponse("/", 303) if door is None else _page()

    @app.post("/login", include_in_schema=False)
    async def enter(request: Request) -> Response:
        given = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=10)
        if door is None or not door.is_token(given.get("token", [""])[0].strip()):
            return _page("That is not the token.", 401)
        answer = RedirectResponse("/", 303)
        secure = request.url.scheme == "https"
        answer.set_cookie(door.cookie, door.secret, WEEK, httponly=True, samesite="strict", secure=secure)
        return answer


def _page(problem: str = "", status: int = 200) -> Response:
    template = (files(__package__) / "static" / "login.html").read_text(encoding="utf-8")
    return HTMLResponse(template.replace("<!--problem-->", escape(problem)), status)
