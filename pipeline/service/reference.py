"""The OpenAPI description as a page without scripts: the usual pages load theirs from elsewhere."""

from html import escape
from typing import Any


def page(description: dict[str, Any]) -> str:
    """HTML of every route: method, path, what it does, what it takes."""
    routes = [
        _route(path, method.upper(), operation)
        for path, methods in description["paths"].items()
        for method, operation in methods.items()
    ]
    title = escape(description["info"]["title"])
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{title}: HTTP</title><link rel="icon" href="data:,">'
        '<link rel="stylesheet" href="/static/app.css"></head>'
        f'<body class="text"><main><h1>{title} by HTTP</h1><p>Wrong requests are answered by 4xx and '
        '<code>{"error": "…"}</code>; 503 with <code>Retry-After</code> where too much is asked for at once. '
        'The whole description: <a href="/openapi.json">openapi.json</a>.</p>'
        f'{"".join(routes)}<p><a href="/">To the page</a></p></main></body></html>'
    )


def _route(path: str, method: str, operation: dict[str, Any]) -> str:
    taken = [_parameter(one) for one in operation.get("parameters", [])]
    if "requestBody" in operation:
        kinds = ", ".join(f"<code>{escape(kind)}</code>" for kind in operation["requestBody"]["content"])
        taken.append(f"<li>body: {kinds} {escape(operation['requestBody'].get('description', ''))}</li>")
    told = escape(operation.get("description", ""))
    return f"<section><h2><code>{method} {escape(path)}</code></h2><p>{told}</p><ul>{''.join(taken)}</ul></section>"


def _parameter(one: dict[str, Any]) -> str:
    told = one.get("description") or one["schema"].get("description") or ""
    return f"<li><code>{escape(one['name'])}</code> ({escape(one['in'])}) {escape(told)}</li>"
