"""The chat page at /: three files of the package, which talk to this server only.

A header has the browser enforce it: no script, style or picture but these, and no connection elsewhere.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Request
from starlette.responses import Response

router = APIRouter(include_in_schema=False)

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
PATHS = frozenset(_FILES)  # they hold no secret, and are where a key can be typed in

_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",  # asked for again each time, and answered with 304
}


@cache
def _file(path: str) -> tuple[bytes, str]:
    """A file and the name of its content."""
    content = (files(__package__) / "static" / _FILES[path][0]).read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:16]}"'


@router.get("/")
@router.get("/page.css")
@router.get("/page.js")
async def page(request: Request) -> Response:
    content, tag = _file(request.url.path)
    headers = {**_HEADERS, "etag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=_FILES[request.url.path][1], headers=headers)
