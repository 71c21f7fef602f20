"""Video features of recent clips in memory, so that several questions about one video run the tower once."""

from collections import OrderedDict
from collections.abc import Callable

from cacovid.models.encoded import VideoFeatures


class FeatureCache:
    """The least recently used clips go first; at most ``max_bytes``. For one thread."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: OrderedDict[str, VideoFeatures] = OrderedDict()
        self._bytes = 0

    def get(self, key: str, compute: Callable[[], VideoFeatures]) -> VideoFeatures:
        """The features of ``key``, computed where absent and kept if they fit."""
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        features = compute()
        size = features.nbytes()
        if size <= self._max_bytes:
            self._held[key] = features
            self._bytes += size
            while self._bytes > self._max_bytes:
                _, oldest = self._held.popitem(last=False)
                self._bytes -= oldest.nbytes()
        return features
