"""The server of the page, and whom it lets in."""

import contextlib
import functools
import hashlib
import ipaddress
import json
import re
import secrets
import socket
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from experiments.asking.site import Site
from experiments.harness.errors import UsageError

PAGE = Path(__file__).with_name("page.html").read_text()
MOST_BYTES = 4096
"""Of a request's body."""
HERE = {"127.0.0.1", "::1", "localhost"}


def app_of(site: Site, token: str, host: str = "127.0.0.1") -> ASGIApp:
    """Return the application. Every request needs the token."""

    def page(_: Request) -> Response:
        return HTMLResponse(PAGE)

    def clip(request: Request) -> Response:
        try:
            left, right = site.draw(request.path_params["name"])
            picture = {"left": left, "right": right}[request.path_params["side"]]
            return Response(picture, media_type="image/png")
        except LookupError:
            raise HTTPException(404, "there is no such clip") from None

    async def act(action: str, request: Request) -> Response:
        try:
            body = json.loads(await request.body())
        except (ValueError, RecursionError):
            raise HTTPException(400, "the body must be JSON") from None
        return JSONResponse(await run_in_threadpool(update, site, action, body))

    actions = [Route(f"/{action}", functools.partial(act, action), methods=["POST"]) for action in FIELDS]
    app = Starlette(routes=[Route("/", page), Route("/clip/{name}/{side}", clip), *actions])
    return Guard(app, token, host)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w-]{1,64}", value, re.ASCII) is not None


OWN: dict[str, Callable[[Any], bool]] = {
    "page": _is_name,
    "have": lambda value: isinstance(value, list) and len(value) < 10 and all(map(_is_name, value)),
}
FIELDS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "state": OWN,
    "undo": OWN,
    "answer": OWN
    | {
        "question": _is_name,
        "choice": lambda value: value in ("left", "right", "tie", "skip"),
        "seconds": lambda value: type(value) in (int, float) and 0 <= value < 1e6,
        "name": lambda value: isinstance(value, str) and len(value) <= 60,
    },
}
"""What a page can do, and the fields of its request."""


def update(site: Site, action: str, body: Any) -> dict[str, Any]:
    """Do what a page asks for, and return what it shows from now on."""
    if not isinstance(body, dict) or body.keys() != FIELDS[action].keys():
        raise HTTPException(422, f"the body must be an object with {', '.join(FIELDS[action])}")
    for name, valid in FIELDS[action].items():
        if not valid(body[name]):
            raise HTTPException(422, f"{name} has a wrong value")
    page, have, undone = body["page"], body["have"], None
    try:
        if action == "answer":
            site.answer(page, body["question"], body["choice"], body["seconds"], body["name"])
        if action == "undo" and (undone := site.undo(page)):
            have = [*have, undone["id"]]
    except LookupError:
        raise HTTPException(404, "there is no such question") from None
    return site.view(page, have) | {"undone": undone}


class Guard:
    """Let requests through that have the token and that the page itself has sent; add headers that protect the page."""

    def __init__(self, app: ASGIApp, token: str, host: str):
        self.app, self.token, self.host = app, token.encode(), host
        parts = re.findall("<(script|style)>(.*?)</", PAGE, re.DOTALL)
        hashes = {kind: b64encode(hashlib.sha256(text.encode()).digest()).decode() for kind, text in parts}
        allowed = "".join(f"; {kind}-src 'sha256-{value}'" for kind, value in hashes.items())
        self.headers = {
            "Content-Security-Policy": f"default-src 'none'{allowed}; img-src data:; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def send_protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        given = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope.get("headers", [])}
        refusal = self.refusal(scope, given)
        app = self.app if refusal is None else JSONResponse({"detail": refusal[1]}, refusal[0])
        await app(scope, receive, send_protected)

    def refusal(self, scope: Scope, given: dict[str, str]) -> tuple[int, str] | None:
        """Return why a request is refused: status and words. None lets it through."""
        host = given.get("host", "")
        if not self._is_ours(host):
            return 400, "this is not a name of this server"
        if "origin" in given and urlsplit(given["origin"]).netloc != host:
            return 403, "the request comes from another site"
        words = given.get("authorization", "").split()
        if scope["path"] == "/":
            words = ["Bearer", *parse_qs(scope["query_string"].decode("latin-1")).get("token", [])]
        if len(words) != 2 or words[0] != "Bearer" or not secrets.compare_digest(words[1].encode(), self.token):
            return 403, "the token is missing or wrong: open the address that the program prints"
        length = given.get("content-length", "0")
        if "transfer-encoding" in given or not length.isdecimal() or int(length) > MOST_BYTES:
            return 413, f"the body must have at most {MOST_BYTES} bytes, and say how many"
        if scope["method"] == "POST" and given.get("content-type", "").partition(";")[0] != "application/json":
            return 415, "the body must be application/json"
        return None

    def _is_ours(self, host: str) -> bool:
        """Whether a Host header names this server. A foreign name may be a page that has turned to this machine."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in HERE or self.host in HERE:
            return name in HERE
        with contextlib.suppress(ValueError):
            return bool(ipaddress.ip_address(name))
        return name in (self.host, socket.gethostname().lower())


def _token(folder: Path) -> str:
    """Return the folder's token: an open page can go on after the server was started again."""
    path = folder / ".token"
    if not path.exists():
        path.touch(0o600)
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
    server = uvicorn.Server(uvicorn.Config(app_of(site, token, host), lifespan="off", ws="none", **options))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    name = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    try:
        yield f"http://{name}:{listening.getsockname()[1]}/?token={token}"
    finally:
        server.should_exit = True
        thread.join(5)
