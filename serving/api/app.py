"""The FastAPI application: routes, and errors in OpenAI's form."""

import asyncio
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from serving.api.gate import Admission, Gate
from serving.api.keys import Keys
from serving.api.requests import ChatRequest, CompressRequest, engine_request
from serving.api.responses import (
    AssistantMessage,
    ChatCompletion,
    Choice,
    Compression,
    ErrorBody,
    Health,
    Models,
    chunk,
    compression_of,
    models_of,
    server_event,
    usage_of,
)
from serving.api.telemetry import Telemetry, exposition
from serving.backend import Backend
from serving.config import ServiceConfig
from serving.engine.records import Delta, EngineRequest, Event, Failed, Finished, Report
from serving.errors import ApiError
from serving.media.records import VideoInput
from serving.page.routes import Sample, add_page

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": meaning}
    for status, meaning in (
        (400, "no JSON"),
        (401, "no valid key"),
        (404, "no such model"),
        (408, "the body came too slowly"),
        (413, "the body is too large"),
        (422, "a field or video that cannot be used"),
        (503, "overloaded, see Retry-After"),
    )
}


def create_app(
    config: ServiceConfig,
    backend: Backend,
    keys: Keys,
    telemetry: Telemetry,
    admission: Admission,
    samples: Sequence[Sample] = (),
) -> FastAPI:
    """The whole HTTP side in front of ``backend``; ``admission`` tells and decides what it holds."""
    app = FastAPI(title="cacovid", version="1", docs_url=None, redoc_url=None)
    service = _Service(config, backend, telemetry, admission)
    _add_api(app, service)
    _add_probes(app, service)
    if config.api.page:
        add_page(app, samples)
    app.add_exception_handler(ApiError, service.refuse)
    app.add_exception_handler(RequestValidationError, service.refuse_invalid)
    app.add_exception_handler(HTTPException, service.refuse_http)
    app.add_middleware(Gate, config=config.api, keys=keys, telemetry=telemetry, admission=admission)
    return app


class _Service:
    """Routes' bodies."""

    def __init__(self, config: ServiceConfig, backend: Backend, telemetry: Telemetry, admission: Admission) -> None:
        self.config = config
        self.backend = backend
        self.telemetry = telemetry
        self.admission = admission

    async def chat(self, body: ChatRequest, request: Request) -> ChatCompletion | StreamingResponse:
        asked, videos = engine_request(body, self.config)
        if body.stream:
            include_usage = body.stream_options is not None and body.stream_options.include_usage
            return await self._streamed(asked, videos, request, include_usage)
        async with self._deadline():
            answer = await self.backend.answer(asked, videos)
        if isinstance(answer, Failed):
            raise answer.error
        finished = answer.finished
        self._note(request, finished.report, finished.completion_tokens)
        return ChatCompletion(
            id=_completion_id(),
            created=int(time.time()),
            model=body.model,
            choices=[Choice(message=AssistantMessage(content=answer.text), finish_reason=finished.reason)],
            usage=usage_of(finished.report, finished.completion_tokens, _elapsed(request)),
        )

    async def compress(self, body: CompressRequest, request: Request) -> Compression:
        asked, videos = engine_request(body, self.config)
        async with self._deadline():
            compressed = await self.backend.compress(asked, videos)
        if isinstance(compressed, Failed):
            raise compressed.error
        self._note(request, compressed.report, 0)
        return compression_of(f"cmpr-{secrets.token_hex(12)}", body.model, compressed, _elapsed(request))

    async def _streamed(
        self, asked: EngineRequest, videos: list[VideoInput], request: Request, include_usage: bool
    ) -> StreamingResponse:
        """A response that has begun only when the request is known to be good: refusals keep their status."""
        events = self.backend.stream(asked, videos)
        try:
            async with self._deadline():
                first = await anext(events)
        except ApiError:
            await events.aclose()
            raise
        if isinstance(first, Failed):
            raise first.error
        lines = self._lines(events, asked.model, request, include_usage)
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # nginx would hold events back
        return StreamingResponse(lines, media_type="text/event-stream", headers=headers)

    async def _lines(
        self, events: AsyncGenerator[Event, None], model: str, request: Request, include_usage: bool
    ) -> AsyncIterator[str]:
        name, created = _completion_id(), int(time.time())
        yield chunk(name, model, created, {"role": "assistant", "content": ""})
        try:
            async with aclosing(events), self._deadline(since=request.state.started):
                async for event in events:
                    match event:
                        case Delta(text):
                            yield chunk(name, model, created, {"content": text})
                        case Finished(reason, tokens, report):
                            self._note(request, report, tokens)
                            yield chunk(name, model, created, {}, reason)
                            if include_usage:
                                usage = usage_of(report, tokens, _elapsed(request)).model_dump()
                                yield chunk(name, model, created, None, usage=usage)
                        case Failed(error):
                            raise error
        except ApiError as error:  # the status has been sent: the error is an event, as OpenAI's clients expect
            self.telemetry.refused(error.code)
            yield server_event(error.body())
            return
        yield "data: [DONE]\n\n"

    async def ready(self) -> JSONResponse:
        """200 as soon as an engine answers; a full queue is ready, for it empties; a draining replica is not."""
        if self.admission.draining:
            return JSONResponse({"status": "draining"}, 503)
        try:
            async with asyncio.timeout(5):
                models = await self.backend.models()
        except TimeoutError:
            return JSONResponse({"status": "not ready"}, 503, {"Retry-After": str(self.config.api.retry_after_s)})
        except ApiError as error:
            busy = error.code == "overloaded"
            return JSONResponse({"status": "busy" if busy else "not ready"}, 200 if busy else 503, error.headers())
        return JSONResponse({"status": "ready" if models else "not ready"}, 200 if models else 503)

    async def metrics(self) -> Response:
        families = await self.backend.metrics(self.telemetry.families())
        return Response(exposition(families), media_type=CONTENT_TYPE_LATEST)

    async def refuse(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        self.telemetry.refused(error.code)
        return JSONResponse(error.body(), error.status, error.headers())

    async def refuse_invalid(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return await self.refuse(request, _validation_error(error))

    async def refuse_http(self, request: Request, error: Exception) -> Response:
        """Starlette's own refusals: no such path, method not allowed, a body that is no JSON."""
        assert isinstance(error, HTTPException)
        code = {404: "not_found", 405: "method_not_allowed", 400: "invalid_json"}.get(error.status_code, "refused")
        spoken = {404: "there is nothing here", 405: "this method is not allowed here", 400: "the body is no JSON"}
        refusal = ApiError(error.status_code, code, spoken.get(error.status_code, "the request is refused"))
        response = await self.refuse(request, refusal)
        response.headers.update(error.headers or {})
        return response

    def _deadline(self, since: float | None = None) -> "_Deadline":
        spent = 0.0 if since is None else time.perf_counter() - since
        return _Deadline(self.config.api.request_timeout_s - spent, self.config.api.retry_after_s)

    def _note(self, request: Request, report: Report, completion_tokens: int) -> None:
        """For metrics and the log line."""
        self.telemetry.used(report, completion_tokens)
        request.state.log = {
            "model": report.model,
            "retention": report.retention,
            "video_tokens": report.video_tokens,
            "kept": report.video_tokens_kept,
            "completion_tokens": completion_tokens,
        }


class _Deadline:
    """``asyncio.timeout`` that raises 503."""

    def __init__(self, seconds: float, retry_after_s: int) -> None:
        self._timeout = asyncio.timeout(max(0.0, seconds))
        self._retry_after_s = retry_after_s

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *caught: Any) -> None:  # noqa: ANN401
        try:
            await self._timeout.__aexit__(*caught)
        except TimeoutError:
            late = "the answer took too long; ask for fewer tokens or try again"
            raise ApiError(503, "timeout", late, retry_after_s=self._retry_after_s) from None


def _add_api(app: FastAPI, service: _Service) -> None:
    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses=_ERRORS)
    async def chat_completions(body: ChatRequest, request: Request) -> Any:  # noqa: ANN401
        """Answer a chat about videos from the tokens that matter for it."""
        return await service.chat(body, request)

    @app.post("/v1/compress", response_model=Compression, responses=_ERRORS)
    async def compress(body: CompressRequest, request: Request) -> Compression:
        """The video tokens retained for a question, without an answer."""
        return await service.compress(body, request)

    @app.get("/v1/models", response_model=Models, responses={status: _ERRORS[status] for status in (401, 503)})
    async def models() -> Models:
        """Every model id: one for each policy, and the model alone."""
        return models_of(await service.backend.models())

    @app.get("/metrics", response_class=Response, responses={401: _ERRORS[401]})
    async def metrics() -> Response:
        """Prometheus metrics of all replicas of this service's HTTP side."""
        return await service.metrics()


def _add_probes(app: FastAPI, service: _Service) -> None:
    @app.get("/healthz", response_model=Health)
    async def healthz() -> Health:
        """Whether this process lives."""
        return Health(status="ok")

    @app.get("/readyz", response_model=Health, responses={503: {"model": Health, "description": "not ready"}})
    async def readyz() -> Response:
        """Whether requests would be answered."""
        return await service.ready()


def _validation_error(error: RequestValidationError) -> ApiError:
    """The fault that lies deepest, where a value may have several forms; what was sent is not repeated."""
    fault = max(error.errors(), key=lambda each: len(each["loc"]))
    if fault["type"] == "json_invalid":
        return ApiError(400, "invalid_json", "the body is no JSON")
    # pydantic's own names of a union's members stand between those of fields.
    place = ".".join(str(part) for part in fault["loc"][1:] if re.fullmatch(r"[\w-]{1,64}", str(part)))
    spoken = {
        "extra_forbidden": "unknown field",
        "model_attributes_type": "it must be a JSON object, sent as application/json",
        "union_tag_invalid": f"its type must be one of {fault.get('ctx', {}).get('expected_tags')}",
    }
    message = spoken.get(fault["type"], str(fault["msg"]))
    return ApiError(422, "invalid_value", f"{place + ': ' if place else ''}{message}"[:500], place[:200] or None)


def _completion_id() -> str:
    return f"chatcmpl-{secrets.token_hex(12)}"


def _elapsed(request: Request) -> float:
    started: float = request.state.started
    return time.perf_counter() - started
