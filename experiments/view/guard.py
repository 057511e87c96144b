"""An ASGI layer in front of Gradio that refuses every request that the page itself does not make."""

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Of Gradio's routes those that this page uses; others fetch addresses, write code or list what was done.
PAGES = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt")
FOLDERS = ("/assets/", "/static/", "/gradio_api/queue/", "/gradio_api/run/", "/gradio_api/upload", "/gradio_api/file=",
           "/gradio_api/heartbeat/", "/gradio_api/startup-events", "/gradio_api/cancel", "/gradio_api/reset",
           "/gradio_api/app_id")  # fmt: skip
# Gradio evaluates templates of its own and cuts videos in a worker; nothing is loaded from, or sent to, another place.
POLICY = "; ".join((
    "default-src 'self'", "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:", "style-src 'self' 'unsafe-inline'",
    "img-src 'self' data: blob:", "media-src 'self' data: blob:", "font-src 'self' data:", "connect-src 'self' blob:",
    "object-src 'none'", "base-uri 'self'", "form-action 'self'", "frame-ancestors 'none'",
))  # fmt: skip
HEADERS = ((b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff"),
           (b"referrer-policy", b"no-referrer"))  # fmt: skip


class Guard:
    """Answers only requests to this server's own name, with the token if there is one, for the page's own routes.

    Args:
        app: what answers them.
        token: comes once as `/?token=...` and is then kept in a cookie; None for an open server.
        any_host: whether requests may name any host. Otherwise only the names of the loopback are accepted, as a
            page from elsewhere could make the browser call this server by a name of its own.
        port: of the server; cookies of two servers of a machine differ by it.
    """

    def __init__(self, app: App, token: str | None = None, any_host: bool = False, port: int = 0) -> None:
        self.app, self.token, self.any_host, self.cookie = app, token, any_host, f"refavs_view_{port}"

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        status, told, more = self._refusal(scope)
        if status:
            await _answer(send, status, told, more)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = {name for name, _ in HEADERS}
                kept = [(name, value) for name, value in message.get("headers", ()) if name.lower() not in known]
                message = {**message, "headers": [*kept, *HEADERS]}
            await send(message)

        await self.app(scope, receive, with_headers)

    def _refusal(self, scope: Message) -> tuple[int, str, tuple[tuple[bytes, bytes], ...]]:
        """Status, text and headers that refuse a request; the status 0 lets it pass."""
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if not self.any_host and _name_of(host) not in LOOPBACK:
            return 403, "this server answers to its own address only, as refavs-view printed it", ()
        if scope["method"] not in ("GET", "HEAD") and origin is not None and urlsplit(origin).netloc != host:
            return 403, "a page of another site may not use this server", ()
        if self.token is not None and not self._is_known(headers.get(b"cookie", "")):
            given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
            if not secrets.compare_digest(given.encode(), self.token.encode()):
                return 401, "open the address that refavs-view printed, with its token", ()
            cookie = f"{self.cookie}={self.token}; HttpOnly; SameSite=Lax; Path=/"
            return 303, "", ((b"location", b"/"), (b"set-cookie", cookie.encode()))
        path = scope["path"]
        if path not in PAGES and not path.startswith(FOLDERS):
            return 404, "no such page", ()
        return 0, "", ()

    def _is_known(self, cookies: str) -> bool:
        assert self.token is not None
        try:
            found = SimpleCookie(cookies).get(self.cookie)
        except CookieError:
            return False
        return found is not None and secrets.compare_digest(found.value.encode(), self.token.encode())


def _name_of(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


async def _answer(send: Send, status: int, told: str, more: tuple[tuple[bytes, bytes], ...]) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *HEADERS, *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": told.encode()})
