"""The FastAPI application: routes, and errors in OpenAI's form.

    request -> Gate (id, key, admission, body) -> route: engine_request (checks) -> backend.answer -> response
                 ^                                                               -> backend.stream -> server-sent events
                 +-- ApiError, raised anywhere -> {"error": ...} with its status; once a stream runs, its last event

The backend hands refusals on as values (``Failed``): raised in a replica they would be logged there as faults.
"""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from serving.api.drawing import Drawing
from serving.api.forms import ChatForm, Form, TextForm, Whole
from serving.api.gate import Admission, Gate
from serving.api.keys import Keys
from serving.api.requests import (
    ChatRequest,
    CompletionRequest,
    CompressRequest,
    completion_request,
    engine_request,
)
from serving.api.responses import (
    ChatCompletion,
    Compression,
    ErrorBody,
    Health,
    Models,
    TextCompletion,
    Usage,
    compression_of,
    server_event,
    usage_of,
)
from serving.api.telemetry import Telemetry, exposition
from serving.backend import Backend
from serving.config import ServiceConfig
from serving.engine.records import Answer, Compressed, Delta, EngineRequest, Event, Failed, Finished, Report
from serving.errors import ApiError
from serving.media.records import VideoInput
from serving.page.routes import Sample, add_page

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": meaning}
    for status, meaning in (
        (400, "no JSON, or a wish that this engine cannot meet"),
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
    app.post("/v1/chat/completions", response_model=ChatCompletion, responses=_ERRORS)(service.chat_completions)
    app.post("/v1/completions", response_model=TextCompletion, responses=_ERRORS)(service.completions)
    app.post("/v1/compress", response_model=Compression, responses=_ERRORS)(service.compress)
    app.get("/v1/models", response_model=Models, responses=_errors(401, 503))(service.models)
    app.get("/metrics", response_class=Response, responses=_errors(401))(service.metrics)
    app.get("/healthz", response_model=Health)(service.healthz)
    not_ready: dict[int | str, dict[str, Any]] = {503: {"model": Health, "description": "not ready"}}
    app.get("/readyz", response_model=Health, responses=not_ready)(service.readyz)
    if config.api.page:
        add_page(app, samples)
    app.add_exception_handler(ApiError, service.refuse)
    app.add_exception_handler(RequestValidationError, service.refuse_invalid)
    app.add_exception_handler(HTTPException, service.refuse_http)
    app.add_middleware(Gate, config=config.api, keys=keys, telemetry=telemetry, admission=admission)
    return app


class _Service:
    """The routes; their names and docstrings stand in the API's description."""

    def __init__(self, config: ServiceConfig, backend: Backend, telemetry: Telemetry, admission: Admission) -> None:
        self.config = config
        self.backend = backend
        self.telemetry = telemetry
        self.admission = admission

    async def chat_completions(self, body: ChatRequest, request: Request) -> ChatCompletion | StreamingResponse:
        """Answer a chat about videos from the tokens that matter for it."""
        asked, videos = engine_request(body, self.config)
        return await self._answered(ChatForm(asked), body, asked, videos, request)

    async def completions(self, body: CompletionRequest, request: Request) -> TextCompletion | StreamingResponse:
        """Go on with a text."""
        asked = completion_request(body, self.config)
        return await self._answered(TextForm(asked), body, asked, [], request)

    async def _answered(
        self, form: Form[Whole], body: Drawing, asked: EngineRequest, videos: list[VideoInput], request: Request
    ) -> Whole | StreamingResponse:
        if body.stream:
            include_usage = body.stream_options is not None and body.stream_options.include_usage
            return await self._streamed(form, asked, videos, request, include_usage)
        answer = await self._outcome(asked, videos)
        assert isinstance(answer, Answer)
        finished = answer.finished
        return form.whole(answer, self._usage(request, finished.report, finished.completion_tokens))

    async def compress(self, body: CompressRequest, request: Request) -> Compression:
        """The video tokens retained for a question, without an answer."""
        compressed = await self._outcome(*engine_request(body, self.config))
        assert isinstance(compressed, Compressed)
        return compression_of(compressed, self._usage(request, compressed.report, 0))

    async def models(self) -> dict[str, Any]:
        """Every model id: one for each policy, and the model alone."""
        return {"data": await self.backend.models()}

    async def metrics(self) -> Response:
        """Prometheus metrics of all replicas of this service's HTTP side."""
        families = await self.backend.metrics(self.telemetry.families())
        return Response(exposition(families), media_type=CONTENT_TYPE_LATEST)

    async def healthz(self) -> Health:
        """Whether this process lives."""
        return Health(status="ok")

    async def readyz(self) -> JSONResponse:
        """Whether requests would be answered."""
        if self.admission.draining:
            return JSONResponse({"status": "draining"}, 503)
        try:
            async with asyncio.timeout(5):
                models = await self.backend.models()
        except TimeoutError:
            return JSONResponse({"status": "not ready"}, 503, {"Retry-After": str(self.config.api.retry_after_s)})
        except ApiError as error:
            busy = error.code == "overloaded"  # a full queue is ready, for it empties
            return JSONResponse({"status": "busy" if busy else "not ready"}, 200 if busy else 503, error.headers())
        return JSONResponse({"status": "ready" if models else "not ready"}, 200 if models else 503)

    async def _outcome(self, asked: EngineRequest, videos: list[VideoInput]) -> Answer | Compressed:
        async with self._deadline():
            outcome = await self.backend.answer(asked, videos)
        if isinstance(outcome, Failed):
            raise outcome.error
        return outcome

    async def _streamed(
        self, form: Form[Any], asked: EngineRequest, videos: list[VideoInput], request: Request, include_usage: bool
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
        lines = self._lines(form, events, request, include_usage)
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # nginx would hold events back
        return StreamingResponse(lines, media_type="text/event-stream", headers=headers)

    async def _lines(
        self, form: Form[Any], events: AsyncGenerator[Event, None], request: Request, include_usage: bool
    ) -> AsyncIterator[str]:
        for opening in form.opening():
            yield opening
        try:
            async with aclosing(events), self._deadline(since=request.state.started):
                async for event in events:
                    match event:
                        case Delta():
                            yield form.delta(event)
                        case Finished(_, tokens, report):
                            usage = self._usage(request, report, tokens)
                            for closing in form.closing(event):
                                yield closing
                            if include_usage:
                                yield form.usage(usage)
                        case Failed(error):
                            raise error
        except ApiError as error:  # the status has been sent: the error is an event, as OpenAI's clients expect
            self.telemetry.refused(error.code)
            yield server_event(error.body())
            return
        yield "data: [DONE]\n\n"

    async def refuse(self, request: Request, error: Exception) -> Response:
        """OpenAI's form of an error."""
        assert isinstance(error, ApiError)
        self.telemetry.refused(error.code)
        return JSONResponse(error.body(), error.status, error.headers())

    async def refuse_invalid(self, request: Request, error: Exception) -> Response:
        """A body that does not fit."""
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

    @asynccontextmanager
    async def _deadline(self, since: float | None = None) -> AsyncIterator[None]:
        """503 where the block outlasts what is left of ``api.request_timeout_s``."""
        spent = 0.0 if since is None else time.perf_counter() - since
        limit = asyncio.timeout(max(0.0, self.config.api.request_timeout_s - spent))
        try:
            async with limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise  # somebody else's
            late = "the answer took too long; ask for fewer tokens or try again"
            raise ApiError(503, "timeout", late, retry_after_s=self.config.api.retry_after_s) from None

    def _usage(self, request: Request, report: Report, completion_tokens: int) -> Usage:
        """What a request used, noted for the metrics and its log line."""
        self.telemetry.used(report, completion_tokens)
        request.state.log = {
            "model": report.model,
            "retention": report.retention,
            "video_tokens": report.video_tokens,
            "kept": report.video_tokens_kept,
            "completion_tokens": completion_tokens,
        }
        return usage_of(report, completion_tokens, time.perf_counter() - request.state.started)


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: _ERRORS[status] for status in statuses}


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
