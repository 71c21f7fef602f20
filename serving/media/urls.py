"""The ``url`` of a ``video_url`` part: which kinds are taken and what they must look like."""

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from serving.config import MediaConfig
from serving.errors import ApiError, bad_video
from serving.media.records import Sampling, VideoInput

MAX_URL = 4_096  # characters; data URLs are bounded by their bytes
MAX_HEAD = 256  # of a data URL, up to its bytes
_BASE64 = ";base64,"
_DATA_TYPES = ("video/", "application/octet-stream")
_FRAMES_TYPE = "video/jpeg"
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f\\]|[^\x00-\x7f]")  # what URL parsers disagree about


@dataclass(frozen=True)
class HttpsTarget:
    """A checked https URL."""

    host: str  # lower case, no trailing dot; without brackets if IPv6
    port: int
    path: str  # with query, without fragment

    @property
    def authority(self) -> str:
        """Value of the ``Host`` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == 443 else f"{host}:{self.port}"


def parse_video_url(url: str, sampling: Sampling, config: MediaConfig) -> VideoInput:
    """Sort ``url`` and refuse what can be refused without reading anything.

    Raises:
        ApiError: an unknown scheme, one that is switched off, a malformed or too long URL.
    """
    scheme = url[:16].partition(":")[0].lower()
    if scheme == "data":
        return _data(url, sampling, config)
    if len(url) > MAX_URL:
        raise bad_video("invalid_url", f"the video's URL has {len(url)} characters; at most {MAX_URL} are taken")
    if scheme == "https":
        https_target(url, config.https_hosts)
        return VideoInput("https", url, sampling)
    if scheme == "file":
        file_path(url, config.file_root)
        return VideoInput("file", url, sampling)
    raise bad_video("unsupported_url", "the video's URL must start with data:, https: or file:")


def https_target(url: str, hosts: tuple[str, ...]) -> HttpsTarget:
    """Take an https URL apart and hold it against the allow-list.

    Raises:
        ApiError: not https, credentials inside, odd characters, or a host that is not listed.
    """
    if len(url) > MAX_URL or _FORBIDDEN.search(url):
        raise bad_video("invalid_url", "the video's URL holds spaces, control characters or characters beyond ASCII")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 443
    except ValueError:
        raise bad_video("invalid_url", "the video's URL cannot be read") from None
    if parts.scheme != "https":
        raise bad_video("unsupported_url", "videos are fetched by https only")
    if "@" in parts.netloc:
        raise bad_video("invalid_url", "the video's URL must hold no user name or password")
    host = host.removesuffix(".").lower()
    if not (_HOST.fullmatch(host) or (":" in host and re.fullmatch(r"[0-9a-f:.]+", host))):
        raise bad_video("invalid_url", "the host in the video's URL cannot be read")
    if not _listed(host, port, hosts):
        raise bad_video("host_not_allowed", "the host in the video's URL is not on this service's allow-list")
    path = parts.path or "/"
    return HttpsTarget(host, port, f"{path}?{parts.query}" if parts.query else path)


def file_path(url: str, root: str | None) -> str:
    """The absolute path of a ``file:`` URL; whether it lies below the root is checked on opening.

    Raises:
        ApiError: file URLs are switched off, or it names a host, or no absolute path.
    """
    if root is None:
        raise bad_video("unsupported_url", "this service takes no file: URLs")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise bad_video("invalid_url", "the video's URL cannot be read") from None
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.startswith("/") or "\x00" in path:
        raise bad_video("invalid_url", "write local files as file:///absolute/path")
    if parts.query or parts.fragment:
        raise bad_video("invalid_url", "a file: URL has no query; write ? and # as %3F and %23")
    return path


def _data(url: str, sampling: Sampling, config: MediaConfig) -> VideoInput:
    end = url[:MAX_HEAD].lower().find(_BASE64)
    if end < 0:
        raise bad_video("invalid_url", "write data URLs as data:video/mp4;base64,...")
    # A recorder's parameters hold commas: video/webm;codecs=vp8,opus.
    media_type, payload = url[len("data:") : end].lower().partition(";")[0], url[end + len(_BASE64) :]
    if not media_type.startswith(_DATA_TYPES):
        raise bad_video("unsupported_media_type", "the data URL's type must be video/...")
    if not payload:
        raise bad_video("empty_video", "the data URL is empty")
    if len(payload) // 4 * 3 > config.max_bytes + 2:
        raise too_large(config.max_bytes)
    return VideoInput("frames" if media_type == _FRAMES_TYPE else "data", payload, sampling)


def too_large(limit: int) -> ApiError:
    """422 for a video above ``media.max_bytes``."""
    return bad_video("video_too_large", f"the video is larger than the {limit} bytes that this service takes")


def _listed(host: str, port: int, hosts: tuple[str, ...]) -> bool:
    return (port == 443 and (host in hosts or "*" in hosts)) or f"{host}:{port}" in hosts
