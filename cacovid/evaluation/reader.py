"""Encoding the items of an evaluation: neighbours that ask about the same video share its features."""

from cacovid.data.prompting import format_prompt
from cacovid.data.video import MAX_PIXELS, DecodedVideo, read_frames
from cacovid.models.adapter import VideoLLM
from cacovid.models.encoded import Encoded, VideoFeatures
from cacovid.records import VideoQuestion


class ItemReader:
    """Decodes and encodes items; the last video's features are kept for the next question about it."""

    def __init__(
        self, video_llm: VideoLLM, num_frames: int, *, instruction: str = "", max_pixels: int = MAX_PIXELS
    ) -> None:
        self.video_llm = video_llm
        self.num_frames = num_frames
        self.instruction = instruction
        self.max_pixels = max_pixels
        self._last: tuple[str, DecodedVideo, VideoFeatures] | None = None

    def encode(self, item: VideoQuestion) -> Encoded:
        """The item with all its video tokens.

        Raises:
            BadItem: the video cannot be read.
        """
        video, features = self._watch(item.video)
        prompt = format_prompt(item, self.instruction)
        return self.video_llm.encode(video.frames, prompt, fps=video.fps, features=features)

    def _watch(self, path: str) -> tuple[DecodedVideo, VideoFeatures]:
        if self._last is None or self._last[0] != path:
            video = read_frames(path, self.num_frames, self.max_pixels)
            self._last = (path, video, self.video_llm.watch(video.frames, fps=video.fps))
        return self._last[1:]
