"""Reads video questions for a frozen Video-LLM: a video is decoded and run through the tower once.

VideoQuestion -> the last video's features, else the cache's, else decode and tower -> + prompt -> Encoded
"""

import time
from pathlib import Path
from typing import Self

from cacovid.answering.prompting import format_prompt
from cacovid.config import DataConfig, ModelConfig
from cacovid.cpu_memory import keep_freed_memory
from cacovid.data.cache import EmbeddingCache, feature_key
from cacovid.data.content import content_key
from cacovid.data.video import DecodedVideo, read_frames
from cacovid.limits import MAX_PIXELS
from cacovid.models.adapter import VideoLLM
from cacovid.models.encoded import Encoded, VideoFeatures
from cacovid.models.loading import load_video_llm
from cacovid.records import Clip, VideoQuestion


class ItemReader:
    """Decodes and encodes items.

    The last clip's features are kept for the next question about it; with a cache, the tower runs once
    for a (video content, segment, model, frame count) in any process that shares the cache's folder.

    Attributes:
        encode_seconds: Wall time spent in :meth:`encode` so far.
        tower_attention: Whether the vision tower's attention is recorded with a clip's features.
    """

    def __init__(
        self,
        video_llm: VideoLLM,
        num_frames: int,
        *,
        instruction: str = "",
        max_pixels: int = MAX_PIXELS,
        cache: EmbeddingCache | None = None,
    ) -> None:
        self.video_llm = video_llm
        self.num_frames = num_frames
        self.instruction = instruction
        self.max_pixels = max_pixels
        self.cache = cache
        self.encode_seconds = 0.0
        self.tower_attention = False
        self._last: tuple[Clip, VideoFeatures] | None = None

    @classmethod
    def load(cls, model: ModelConfig, data: DataConfig, cache_dir: Path | None = None) -> Self:
        """Load the model of ``model`` and open the embedding cache in ``cache_dir`` (None: no cache).

        On a CPU this process keeps freed memory from then on.
        """
        cache = EmbeddingCache(cache_dir, data.cache_bytes) if cache_dir and data.cache_bytes else None
        video_llm = load_video_llm(model)
        if video_llm.device.type == "cpu":
            keep_freed_memory()
        return cls(
            video_llm,
            model.num_frames,
            instruction=data.instruction,
            max_pixels=data.max_pixels,
            cache=cache,
        )

    def encode(self, item: VideoQuestion) -> Encoded:
        """The item with all its video tokens.

        Raises:
            BadItem: The video cannot be read or is too large.
        """
        started = time.perf_counter()
        try:
            features = self._features(item.clip)
            return self.video_llm.encode(features, format_prompt(item, self.instruction))
        finally:
            self.encode_seconds += time.perf_counter() - started

    def _features(self, clip: Clip) -> VideoFeatures:
        stale = self.tower_attention and self._last is not None and self._last[1].tower is None
        if self._last is None or self._last[0] != clip or stale:
            self._last = (clip, self._watch(clip) if self.cache is None else self._watch_cached(clip, self.cache))
        return self._last[1]

    def _watch_cached(self, clip: Clip, cache: EmbeddingCache) -> VideoFeatures:
        encoding = self.video_llm.encoding_key + ("+attention" if self.tower_attention else "")
        key = feature_key(content_key(clip.video), encoding, self.num_frames, clip.start, clip.end)
        features = cache.get(key)
        if features is None:
            features = self._watch(clip)
            cache.put(key, features)
        return features

    def frames(self, clip: Clip) -> DecodedVideo:
        """The frames that the tower sees of a clip. Raises BadItem as :meth:`encode`."""
        return read_frames(clip.video, self.num_frames, self.max_pixels, start=clip.start, end=clip.end)

    def _watch(self, clip: Clip) -> VideoFeatures:
        video = self.frames(clip)
        return self.video_llm.watch(video.frames, fps=video.fps, tower_attention=self.tower_attention)
