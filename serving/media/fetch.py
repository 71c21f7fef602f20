"""Bytes of a video into a file: by https, from a data URL, from a local file; bounded while they come.

Runs in a decoding process. The https host is resolved once, every address is checked, and the
connection goes to a checked address itself: a second answer of a hostile name server is never asked for.
"""

import base64
import binascii
import hashlib
import os
import socket
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urljoin

import urllib3
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError

from serving.config import MediaConfig
from serving.errors import bad_video, room_on_disk
from serving.media.addresses import AddressPolicy
from serving.media.urls import HttpsTarget, file_path, https_target, too_large

Resolve = Callable[[str, int], list[str]]

_BLOCK = 1 << 18
_REDIRECTS = (301, 302, 303, 307, 308)


def system_resolve(host: str, port: int) -> list[str]:
    """Numeric addresses of ``host`` by the system's resolver; [] where there are none."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [str(entry[4][0]) for entry in found]


def fetch_https(url: str, target: Path, config: MediaConfig, resolve: Resolve = system_resolve) -> str:
    """Download ``url`` to ``target``; each redirect is checked like the first URL.

    Returns:
        Hash of the bytes (hex).

    Raises:
        ApiError: a URL, host or address that is not allowed, no answer, another status than 200, too large.
    """
    addresses = AddressPolicy.of(config.private_networks)
    for _ in range(config.max_redirects + 1):
        place = https_target(url, config.https_hosts)
        try:
            with _answer(place, _checked_addresses(place, addresses, resolve), config) as response:
                if response.status not in _REDIRECTS:
                    return _download(response, target, config.max_bytes)
                url = urljoin(url, response.headers.get("location", ""))
        except HTTPError:
            raise bad_video("fetch_failed", "the video's host did not answer as it should") from None
    raise bad_video("fetch_failed", f"the video's URL redirects more than {config.max_redirects} times")


def save_base64(text: str, target: Path, max_bytes: int) -> str:
    """Decode base64 to ``target``; returns the bytes' hash."""
    return _save([decode_base64(text)], target, max_bytes)


def decode_base64(text: str) -> bytes:
    """Strict base64; raises ApiError."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise bad_video("invalid_base64", "the data URL is no valid base64") from None


def copy_local(url: str, target: Path, config: MediaConfig) -> str:
    """Copy a file below ``media.file_root`` to ``target``; returns the bytes' hash.

    The path is judged by what was opened, after all links: a link that changes meanwhile gains nothing.

    Raises:
        ApiError: outside the root, absent, no regular file, or too large. Outside and absent read alike.
    """
    path = file_path(url, config.file_root)
    assert config.file_root is not None
    refused = bad_video("file_not_found", "there is no such video below this service's folder of local videos")
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        raise refused from None
    try:
        real = Path(os.readlink(f"/proc/self/fd/{opened}"))
        status = os.fstat(opened)
        if not real.is_relative_to(Path(config.file_root).resolve()) or not stat.S_ISREG(status.st_mode):
            raise refused
        if status.st_size > config.max_bytes:
            raise too_large(config.max_bytes)
        return _save(iter(lambda: os.read(opened, _BLOCK), b""), target, config.max_bytes)
    finally:
        os.close(opened)


def _checked_addresses(place: HttpsTarget, addresses: AddressPolicy, resolve: Resolve) -> list[str]:
    """Where to connect to; a host with any address that is not allowed is refused whole."""
    found = resolve(place.host, place.port)
    if not found:
        raise bad_video("fetch_failed", "the host in the video's URL has no address")
    if not all(addresses.allows(each) for each in found):
        raise bad_video("address_not_allowed", "the host in the video's URL lies in a network that is not fetched from")
    return found


@contextmanager
def _answer(place: HttpsTarget, addresses: Sequence[str], config: MediaConfig) -> Iterator[urllib3.BaseHTTPResponse]:
    """The host's answer from the first of ``addresses`` that takes a connection."""
    for address in addresses:
        pool = _pinned_pool(place, address, config)
        try:
            response = pool.urlopen(
                "GET",
                place.path,
                headers={"Host": place.authority, "User-Agent": "cacovid", "Accept-Encoding": "identity"},
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
            )
        except (ConnectTimeoutError, NewConnectionError):
            pool.close()
            if address == addresses[-1]:
                raise
            continue
        try:
            yield response
        finally:
            pool.close()
        return


def _pinned_pool(place: HttpsTarget, address: str, config: MediaConfig) -> urllib3.HTTPSConnectionPool:
    """Connects to ``address``; certificate and server name are the host's."""
    timeout = urllib3.Timeout(connect=config.connect_timeout_s, read=config.connect_timeout_s)
    return urllib3.HTTPSConnectionPool(
        address,
        place.port,
        timeout=timeout,
        maxsize=1,
        cert_reqs="CERT_REQUIRED",
        ca_certs=config.ca_file,
        assert_hostname=place.host,
        server_hostname=place.host,
    )


def _download(response: urllib3.BaseHTTPResponse, target: Path, max_bytes: int) -> str:
    if response.status != 200:
        raise bad_video("fetch_failed", f"the video's host answered with status {response.status}")
    length = response.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise too_large(max_bytes)
    return _save(response.stream(_BLOCK, decode_content=False), target, max_bytes)


def _save(blocks: Iterable[bytes] | Iterator[bytes], target: Path, max_bytes: int) -> str:
    digest = hashlib.blake2b(digest_size=20)
    size = 0
    with room_on_disk(), target.open("wb") as file:
        for block in blocks:
            size += len(block)
            if size > max_bytes:
                raise too_large(max_bytes)
            digest.update(block)
            file.write(block)
    if not size:
        raise bad_video("empty_video", "the video is empty")
    return digest.hexdigest()
