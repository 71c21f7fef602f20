"""The deployment that reads videos."""

from serving.config import ServiceConfig
from serving.engine.records import Failed
from serving.errors import ApiError
from serving.logs import set_up_logs
from serving.media.records import Clip, VideoInput
from serving.media.sandbox import Sandbox


class MediaReplica:
    """Fetches and decodes videos in processes of its own."""

    def __init__(self, config: ServiceConfig) -> None:
        set_up_logs(config.log_level)
        self._sandbox = Sandbox(config.media, config.model.num_frames, config.api.retry_after_s)

    async def read(self, video: VideoInput) -> Clip | Failed:
        """The sampled frames, or why there are none; a refusal is a value, so that no log tells of it."""
        try:
            return await self._sandbox.read(video)
        except ApiError as error:
            return Failed(error)

    async def check_health(self) -> None:
        """Raises RuntimeError when no decoding process can be started; the first check starts their template."""
        await self._sandbox.check()

    def __del__(self) -> None:
        """End the decoding processes with the replica."""
        self._sandbox.close()
