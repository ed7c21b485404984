"""The page's HTTP server, a thin layer over the desk."""

import base64
import contextlib
import hashlib
import logging
import secrets
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from importlib import resources
from typing import Annotated, Any, TypeVar

import uvicorn
from pydantic import Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from pixelpick_ray.annotate.connections import BoundedProtocol
from pixelpick_ray.annotate.desk import Desk, Reply
from pixelpick_ray.annotate.guard import EVERYWHERE, LARGEST_BODY, Guard, error, nothing_here
from pixelpick_ray.annotate.rota import Refusal
from pixelpick_ray.config.spec import Spec
from pixelpick_ray.data.answers import OneLine
from pixelpick_ray.errors import DataError, PixelPickError, SpecError, StoreError
from pixelpick_ray.supervisor import heeded

SCRIPTS = ("draw.js", "clock.js", "keyboard.js", "memory.js", "wire.js", "page.js")
STATUS = {"wrong": 400, "taken": 409, "gone": 410}  # HTTP status by reason of a refusal


class Begin(Spec):
    """Request to open the page."""

    annotator: OneLine


class Next(Spec):
    """Request for questions beyond those that the page has."""

    annotator: OneLine
    have: Annotated[list[OneLine], Field(max_length=1000)]


class Skip(Spec):
    """Request to postpone a question."""

    annotator: OneLine
    question: OneLine


class Undone(Spec):
    """Request to take back an answer."""

    annotator: OneLine
    answer: OneLine


Body = TypeVar("Body", bound=Spec)
Endpoint = Callable[[Request], Awaitable[Response]]


def make_app(desk: Desk, token: str, host: str = "127.0.0.1", *, once: str = "") -> Starlette:
    """Make the application that serves a desk at `host` under ``/TOKEN/``; ``/ONCE/`` redirects there once."""
    page, policy = page_html()

    async def show(request: Request) -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    def image(request: Request) -> Response:
        return Response(desk.image(_number(request)), media_type="image/png")

    def points(request: Request) -> Response:
        return JSONResponse({"points": desk.points(_number(request))})

    routes = [
        Route("/", show, methods=["GET"]),
        Route("/begin", _post(Begin, lambda body: desk.begin(body.annotator)), methods=["POST"]),
        Route("/next", _post(Next, lambda body: desk.next(body.annotator, body.have)), methods=["POST"]),
        Route("/answer", _post(Reply, desk.answer), methods=["POST"]),
        Route("/skip", _post(Skip, lambda body: desk.skip(body.annotator, body.question)), methods=["POST"]),
        Route("/undo", _post(Undone, lambda body: desk.undo(body.annotator, body.answer)), methods=["POST"]),
        Route("/image/{number}", image, methods=["GET"]),
        Route("/points/{number}", points, methods=["GET"]),
    ]
    app = Starlette(routes=routes, middleware=[Middleware(Guard, token=token, host=host, once=once)])
    app.router.redirect_slashes = False
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(PixelPickError, _own_error)
    app.add_exception_handler(Exception, _unexpected)
    return app


def _number(request: Request) -> int:
    text = str(request.path_params["number"])
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise HTTPException(404)
    return int(text)


def _post(model: type[Body], call: Callable[[Body], dict[str, Any]]) -> Endpoint:
    """Endpoint that parses a body of this model and calls the desk on a thread."""

    async def endpoint(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return error(415, "Content-Type: give application/json.")
        content = await _content(request)
        try:
            body = model.model_validate_json(content)
        except ValidationError as problem:
            return error(400, _told(problem))
        return JSONResponse(await run_in_threadpool(call, body))

    return endpoint


async def _content(request: Request) -> bytes:
    """Read the body up to the allowed size, since its declared length may be absent or wrong."""
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > LARGEST_BODY:
            raise HTTPException(413)
    return content


def _told(problem: ValidationError) -> str:
    """What is wrong with a body, without its contents."""
    parts = (f"{'.'.join(map(str, item['loc'])) or 'body'}: {item['msg']}" for item in problem.errors()[:5])
    return f"{'; '.join(parts)}."


def _http_error(request: Request, problem: Exception) -> Response:
    status = problem.status_code if isinstance(problem, HTTPException) else 500
    if status == 404:
        return nothing_here()
    sentences = {
        405: "Method not allowed.",
        413: f"body: more than {LARGEST_BODY} bytes; an answer is far smaller.",
    }
    return error(status, sentences.get(status, "This request cannot be answered."))


def _own_error(request: Request, problem: Exception) -> Response:
    if isinstance(problem, Refusal):
        return error(STATUS[problem.reason], str(problem))
    return error(503 if isinstance(problem, StoreError | DataError) else 500, str(problem))


def _unexpected(request: Request, problem: Exception) -> Response:
    return error(500, "Internal server error; see the server's terminal for details.")


# The page


def page_html() -> tuple[str, str]:
    """Return the page as one document, and its Content-Security-Policy, which allows only its own script."""
    script = "".join(map(_asset, SCRIPTS))
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; connect-src 'self'; "
        "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    page = _asset("page.html").replace("<!-- style -->", f"<style>{_asset('page.css')}</style>")
    return page.replace("<!-- script -->", f"<script>{script}</script>"), policy


def _asset(name: str) -> str:
    return resources.files("pixelpick_ray.annotate").joinpath("web", name).read_text(encoding="utf-8")


# Running


def serve(desk: Desk, *, host: str, ports: Sequence[int], on_ready: Callable[[str, str], None]) -> None:
    """Serve a desk until SIGINT, SIGTERM or SIGHUP, then close it. Must be called on the main thread.

    Listens at the first free port of `ports`; 0 is any free one. `on_ready` gets the page's address, which contains a
    new secret token, and a single-use address that leads there, for programs whose arguments other users of the machine
    can see. Raises SpecError if all ports are taken.
    """
    token, once = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    try:
        with _listening(host, ports) as listener:
            config = uvicorn.Config(
                make_app(desk, token, host, once=once),
                http=BoundedProtocol,
                access_log=False,
                log_level=logging.ERROR,
                lifespan="off",
                ws="none",
                server_header=False,
                timeout_graceful_shutdown=3,
            )
            shown = "127.0.0.1" if host in EVERYWHERE else f"[{host}]" if ":" in host else host
            site = f"http://{shown}:{listener.getsockname()[1]}"
            server = uvicorn.Server(config)
            with _stopped_by_signals(server):
                on_ready(f"{site}/{token}/", f"{site}/{once}/")
                server.run(sockets=[listener])
    finally:
        desk.close()


@contextlib.contextmanager
def _stopped_by_signals(server: uvicorn.Server) -> Iterator[None]:
    """Stop the server on signals, even before it runs; uvicorn re-raises the signals it received when it ends."""

    def stop(*_: object) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, stop) for number in heeded()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listening(host: str, ports: Sequence[int]) -> socket.socket:
    for port in ports:
        try:
            listener = _listening_at(host or "0.0.0.0", port)
        except OSError as error:
            problem = error
            continue
        # Accepted connections inherit this. Otherwise, a body waits 40 ms for its head to be acknowledged.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    raise SpecError(
        f"{host}:{ports[-1]}: cannot listen there ({problem.strerror}); give another --port, or 0 for any free one"
    ) from problem


def _listening_at(host: str, port: int) -> socket.socket:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family, dualstack_ipv6=host == "::")
