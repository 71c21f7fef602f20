"""The page at / and the clips that it offers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles

from serving.errors import ApiError

FOLDER = Path(__file__).parent / "static"


@dataclass(frozen=True)
class Sample:
    """One clip with questions that can be asked about it."""

    title: str
    content: bytes  # MP4
    questions: tuple[str, ...]  # with lettered options


def add_page(app: FastAPI, samples: Sequence[Sample]) -> None:
    """Routes of the page, its files and its samples."""
    app.mount("/page", StaticFiles(directory=FOLDER))

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(FOLDER / "index.html")

    @app.get("/samples", include_in_schema=False)
    async def sample_list() -> list[dict[str, Any]]:
        return [
            {"title": sample.title, "url": f"/samples/{place}.mp4", "questions": sample.questions}
            for place, sample in enumerate(samples)
        ]

    @app.get("/samples/{place}.mp4", include_in_schema=False)
    async def sample(place: int) -> Response:
        if not 0 <= place < len(samples):
            raise ApiError(404, "not_found", "there is no such sample")
        return Response(samples[place].content, media_type="video/mp4")
