"""A server that speaks vLLM's ``/v1/completions`` as far as the proxy uses it, around the embedded model itself.

What is asked is held against vLLM 0.32's own rules: dense 2-D floats of the model's width, known fields, positions
0..S-1. ``tests/vllm/test_proxy.py`` asks a real one.
"""

import asyncio
import base64
import io
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from cacovid.models.adapter import VideoLLM

NAME = "some/model"
FIELDS = {
    *("model", "prompt", "prompt_embeds", "max_tokens", "temperature", "top_p", "seed", "stop_token_ids", "stream"),
    *("presence_penalty", "frequency_penalty", "logprobs", "structured_outputs"),
    *("return_token_ids", "return_tokens_as_token_ids"),
}


@dataclass
class Upstream:
    """The server, what it was asked, and what it is to do wrong."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    refuse: tuple[int, dict[str, Any]] | None = None
    events: list[str] | None = None  # in place of its own
    endless: bool = False  # its answers have no end
    left: int = 0  # streams that were left before their end


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "BadRequestError", "code": status}}, status)


def _app(llm: VideoLLM, upstream: Upstream) -> FastAPI:
    app = FastAPI()

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"data": [{"id": NAME}]}

    @app.post("/v1/completions")
    async def completions(request: Request) -> Any:
        body = await request.json()
        upstream.asked.append(body)
        upstream.keys.append(request.headers.get("authorization"))
        if upstream.refuse is not None:
            status, answer = upstream.refuse
            return JSONResponse(answer, status)
        if unknown := set(body) - FIELDS:
            return _error(400, f"unknown {unknown}")
        if body["model"] != NAME:
            return _error(404, "no such model")
        embeds = _embeds(llm, body)
        if embeds.ndim != 2 or embeds.shape[1] != llm.hidden_size or not embeds.is_floating_point():
            return _error(400, "wrong shape")
        return StreamingResponse(
            _counted(_events(llm, embeds, body, upstream), upstream), media_type="text/event-stream"
        )

    return app


def _embeds(llm: VideoLLM, body: dict[str, Any]) -> torch.Tensor:
    if "prompt" in body:
        return llm.model.get_input_embeddings()(torch.tensor(body["prompt"]))
    return torch.load(io.BytesIO(base64.b64decode(body["prompt_embeds"])), weights_only=True)


async def _counted(events: AsyncIterator[str], upstream: Upstream) -> AsyncIterator[str]:
    whole = False
    try:
        async for event in events:
            yield event
        whole = True
    finally:
        upstream.left += not whole


async def _events(llm: VideoLLM, embeds: torch.Tensor, body: dict[str, Any], upstream: Upstream) -> AsyncIterator[str]:
    while upstream.endless:
        yield 'data: {"choices": [{"index": 0, "text": "?", "token_ids": [20], "finish_reason": null}]}\n\n'
        await asyncio.sleep(0.01)
    if upstream.events is not None:
        for event in upstream.events:
            yield event
        return
    assert body["stream"] is body["return_token_ids"] is body["return_tokens_as_token_ids"] is True
    for number in range(body["max_tokens"]):
        with torch.inference_mode():
            hidden = llm.model.get_decoder()(inputs_embeds=embeds[None], use_cache=False).last_hidden_state[:, -1]
            logprobs = llm.model.get_output_embeddings()(hidden)[0].log_softmax(0)
        token = int(logprobs.argmax())
        ends = token in body["stop_token_ids"]
        best = logprobs.topk(max(1, body.get("logprobs") or 0))
        told = None
        if "logprobs" in body:
            top = {f"token_id:{i}": v for v, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)}
            told = {
                "tokens": [f"token_id:{token}"],
                "token_logprobs": [float(logprobs[token])],
                "top_logprobs": [top],
                "text_offset": [0],
            }
        reason = "stop" if ends else "length" if number + 1 == body["max_tokens"] else None
        choice = {"index": 0, "text": "?", "token_ids": [token], "logprobs": told, "finish_reason": reason}
        yield f"data: {json.dumps({'object': 'text_completion', 'choices': [choice]})}\n\n"
        if ends:
            break
        embeds = torch.cat([embeds, llm.model.get_input_embeddings()(torch.tensor([token]))])
    yield "data: [DONE]\n\n"


@contextmanager
def upstream_server(llm: VideoLLM) -> Iterator[Upstream]:
    """It listens on a free port of loopback until the block ends."""
    upstream = Upstream()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    upstream.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(_app(llm, upstream), log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield upstream
    finally:
        server.should_exit = True
        thread.join(30)
