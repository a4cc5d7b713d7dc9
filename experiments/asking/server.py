"""The server of the page, and whom it lets in."""

import contextlib
import functools
import hashlib
import ipaddress
import re
import secrets
import socket
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from experiments.asking.site import Site
from experiments.harness.errors import UsageError

PAGE = Path(__file__).with_name("page.html").read_text()
MOST_BYTES = 4096
"""Largest size of a request's body."""
LOOPBACK = {"127.0.0.1", "::1", "localhost"}


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w-]{1,64}", value, re.ASCII) is not None


VALID: dict[str, Callable[[Any], bool]] = {
    "page": _is_name,
    "question": _is_name,
    "choice": lambda value: value in ("left", "right", "tie", "skip"),
    "seconds": lambda value: type(value) in (int, float) and 0 <= value < 1e6,
    "person": lambda value: isinstance(value, str) and len(value) <= 60 and value.isprintable(),
}
"""Fields of requests, and whether a value is one of theirs."""
ACTIONS = {"state": ["page"], "undo": ["page", "question"], "answer": [*VALID]}
"""What a page can do, and the fields of its request."""


def _hashed(kind: str) -> str:
    """Return what allows the page's script, or its style, and no other."""
    (text,) = re.findall(f"<{kind}>(.*?)</{kind}>", PAGE, re.DOTALL)
    return f"{kind}-src 'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; {_hashed('script')}; {_hashed('style')}; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Of every reply: they protect the page in the browser."""


def app_of(site: Site, token: str, host: str) -> ASGIApp:
    """Return the application. Every request needs the token."""

    def page(_: Request) -> Response:
        return HTMLResponse(PAGE)

    def clip(request: Request) -> Response:
        try:
            left, right = site.draw(request.path_params["name"])
            picture = {"left": left, "right": right}[request.path_params["side"]]
        except KeyError:
            raise HTTPException(404, "there is no such clip") from None
        return Response(picture, media_type="image/png")

    async def act(action: str, request: Request) -> Response:
        try:
            body = await request.json()
        except (ValueError, RecursionError):
            raise HTTPException(400, "the body must be JSON") from None
        return JSONResponse(await run_in_threadpool(update, site, action, body))

    def refuse(_: Request, error: Any) -> Response:
        return JSONResponse({"detail": error.detail}, error.status_code)

    actions = [Route(f"/{action}", functools.partial(act, action), methods=["POST"]) for action in ACTIONS]
    routes = [Route("/", page), Route("/clip/{name}/{side}", clip), *actions]
    return Guard(Starlette(routes=routes, exception_handlers={HTTPException: refuse}), token, host)


def update(site: Site, action: str, body: Any) -> dict[str, Any]:
    """Do what a page asks for, and return what it shows from now on."""
    if not isinstance(body, dict) or body.keys() != set(ACTIONS[action]):
        raise HTTPException(422, f"the body must be an object with {', '.join(ACTIONS[action])}")
    for name, value in body.items():
        if not VALID[name](value):
            raise HTTPException(422, f"{name} has a wrong value")
    try:
        if action != "state":
            getattr(site, action)(**body)
    except KeyError:
        raise HTTPException(404, "this is not asked now") from None
    return site.view(body["page"])


class Guard:
    """Let requests through that have the token and that the page itself has sent."""

    def __init__(self, app: Any, token: str, host: str):
        self.app, self.token, self.local = app, token, host in LOOPBACK
        self.names = LOOPBACK if self.local else LOOPBACK | {host, socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        refusal = self.refusal(Request(scope))
        app = JSONResponse({"detail": refusal[1]}, refusal[0]) if refusal else self.app
        await app(scope, receive, send)

    def refusal(self, request: Request) -> tuple[int, str] | None:
        """Return why a request is refused: status and words. None lets it through."""
        headers, path = request.headers, request.scope["path"]
        host = headers.get("host", "")
        if not self._is_ours(host):
            return 400, "this is not a name of this server"
        if headers.get("origin", f"http://{host}") != f"http://{host}":
            return 403, "the request comes from another site"
        bearer = request.query_params.get("token", "") if path == "/" else headers.get("authorization", "")
        if not secrets.compare_digest(bearer.removeprefix("Bearer ").encode(), self.token.encode()):
            return 403, "the token is missing or wrong: open the address that the program prints"
        length = headers.get("content-length", "0")
        if "transfer-encoding" in headers or not length.isdecimal() or int(length) > MOST_BYTES:
            return 413, f"the body must have at most {MOST_BYTES} bytes, and say how many"
        if request.method == "POST" and headers.get("content-type", "").partition(";")[0] != "application/json":
            return 415, "the body must be application/json"
        return None

    def _is_ours(self, host: str) -> bool:
        """Whether a Host header names this server. With a foreign one, another site may be asking (DNS rebinding)."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            # Machines that are let in may ask for any address of this one.
            return name in self.names or (not self.local and bool(ipaddress.ip_address(name)))
        except ValueError:  # it is neither a host nor an address
            return False


def _token(folder: Path) -> str:
    """Return the folder's token: an open page can go on after the server was started again."""
    path = folder / ".token"
    path.touch(0o600)
    if not path.read_text():
        path.write_text(secrets.token_urlsafe(24))
    return path.read_text()


@contextlib.contextmanager
def serving(site: Site, folder: Path, host: str, port: int) -> Iterator[str]:
    """Serve the site in the background; give its address. `folder` keeps the token."""
    token = _token(folder)
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UsageError(f"--host {host} --port {port}: {error.strerror or error}; give another --port") from error
    options: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False}
    app, headers = app_of(site, token, host), [*HEADERS.items()]
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", ws="none", headers=headers, **options))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    name = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    try:
        yield f"http://{name}:{listening.getsockname()[1]}/?token={token}"
    finally:
        server.should_exit = True
        thread.join(5)
