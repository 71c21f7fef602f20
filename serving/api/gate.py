"""What every request passes before any route sees it: id, key, admission, body limit; and the log line.

A plain ASGI middleware: nothing of an unauthorised or oversized body is read, and streams stay streams.
"""

import asyncio
import json
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.keys import Keys
from serving.api.telemetry import Telemetry
from serving.config import ApiConfig
from serving.errors import ApiError, overloaded

logger = logging.getLogger("cacovid.serving.api")

OPEN = ("/", "/healthz", "/readyz", "/openapi.json")  # neither answers nor anybody's data
OPEN_BELOW = ("/page/", "/samples")
ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/compress", "/v1/models", "/metrics")
CLIENT_LEFT = 499  # in place of a status that nobody waited for, as in nginx' logs
_CLIENTS_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        b"media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
)


@dataclass
class Admission:
    """Requests that this replica holds, and whether it takes more."""

    held: int = 0
    held_bytes: int = 0  # of their bodies
    draining: bool = False


class Gate:
    """Middleware; ``scope['state']['request_id']`` is the request's id for the routes."""

    def __init__(self, app: ASGIApp, config: ApiConfig, keys: Keys, telemetry: Telemetry, admission: Admission) -> None:
        self._app = app
        self._config = config
        self._keys = keys
        self._telemetry = telemetry
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        request_id = _request_id(headers.get(b"x-request-id", ""))
        started = time.perf_counter()
        scope["state"] = {**scope.get("state", {}), "request_id": request_id, "started": started}
        status = CLIENT_LEFT

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_HEADERS, (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._admitted(scope, headers, receive, answer)
        except ApiError as error:
            self._telemetry.refused(error.code)
            await _refuse(answer, error)
        except Exception:  # a fault of ours: the client learns the request's id, the log the rest
            logger.exception("request %s failed", request_id)
            self._telemetry.refused("internal_error")
            if status != CLIENT_LEFT:
                raise  # in the middle of an answer: the server cuts the connection
            await _refuse(answer, ApiError(500, "internal_error", f"internal error; request id {request_id}"))
        finally:
            self._record(scope, status, time.perf_counter() - started)

    async def _admitted(self, scope: Scope, headers: dict[bytes, str], receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if path not in OPEN and not path.startswith(OPEN_BELOW):
            self._keys.check(headers.get(b"authorization"))
            self._check_host(headers.get(b"host", ""))
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if self._admission.draining:
            raise overloaded("the service is shutting down", self._config.retry_after_s)
        if self._admission.held >= self._config.max_in_flight:
            raise overloaded("too many requests are in flight", self._config.retry_after_s)
        self._admission.held += 1
        self._telemetry.in_flight.inc()
        try:
            async with self._body(headers, receive) as body:
                await self._app(scope, _replayed(body, receive), send)
        finally:
            self._admission.held -= 1
            self._telemetry.in_flight.dec()

    def _check_host(self, host: str) -> None:
        """Without keys, a web page whose name was pointed at this machine could ask in its visitor's name."""
        name = re.sub(r":\d+$", "", host).lower()
        if not self._keys.required and "*" not in self._config.hosts and name not in self._config.hosts:
            raise ApiError(421, "host_not_served", "this service is not called by that host name (api.hosts)")

    @asynccontextmanager
    async def _body(self, headers: dict[bytes, str], receive: Receive) -> AsyncIterator[bytes]:
        """The whole body, bounded in size and time; it counts as held inside the block."""
        length = headers.get(b"content-length", "")
        self._check_size(int(length[:20]) if length.isdecimal() else 0)
        body, size = bytearray(), 0
        try:
            try:
                async with asyncio.timeout(self._config.body_timeout_s):
                    more = True
                    while more:
                        message = await receive()
                        block = message.get("body", b"")
                        body += block
                        size += len(block)
                        self._admission.held_bytes += len(block)
                        self._check_size(size)
                        more = message["type"] == "http.request" and message.get("more_body", False)
            except TimeoutError:
                raise ApiError(408, "body_timeout", "the request body did not arrive in time") from None
            whole = bytes(body)
            body.clear()
            yield whole
        finally:
            self._admission.held_bytes -= size

    def _check_size(self, size: int) -> None:
        """Refuse a body that is too large, and one that does not fit beside the others now."""
        if size > self._config.max_body_bytes:
            limit = self._config.max_body_bytes
            raise ApiError(413, "body_too_large", f"the request body exceeds {limit} bytes")
        if self._admission.held_bytes > self._config.max_held_bytes:
            raise overloaded("too many large requests are in flight", self._config.retry_after_s)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope["path"] if scope["path"] in ROUTES or scope["path"] in OPEN else "other"
        self._telemetry.answered(route, status, seconds)
        if route in ROUTES or status >= 400:
            fields = {"request": scope["state"]["request_id"], "method": scope["method"], "route": route}
            logger.info("%s", json.dumps(fields | {"status": status, "ms": round(1000 * seconds, 1)} | _noted(scope)))


def _noted(scope: Scope) -> dict[str, Any]:
    """What the route noted for the log: counts, never content."""
    noted: dict[str, Any] = scope["state"].get("log", {})
    return noted


def _request_id(given: str) -> str:
    """The client's id where it is harmless, else a new one."""
    return given if _CLIENTS_ID.fullmatch(given) else secrets.token_hex(12)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """First the body already read, then whatever the connection says (a disconnect)."""
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _refuse(send: Send, error: ApiError) -> None:
    headers = [(name.lower().encode(), value.encode()) for name, value in error.headers().items()]
    content = json.dumps(error.body()).encode()
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
