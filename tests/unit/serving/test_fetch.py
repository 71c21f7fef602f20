"""https and local files, with a hostile server and hostile links. No decoding here."""

import os
from pathlib import Path

import pytest

from serving.config import MediaConfig
from serving.errors import ApiError
from serving.media.fetch import copy_local, fetch_https
from tests.support.https_server import HttpsServer, https_server

LOOPBACK = ("127.0.0.1/32",)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with https_server(tmp_path_factory.mktemp("https")) as running:
        running.files["/clip.mp4"] = b"a video" * 100
        yield running


def config_for(server: HttpsServer, **changes) -> MediaConfig:
    hosts = tuple(f"{name}:{server.port}" for name in ("video.test", "other.test"))
    values = {"https_hosts": hosts, "private_networks": LOOPBACK, "ca_file": str(server.ca_file), "max_bytes": 100_000}
    return MediaConfig(**values | changes)


class Names:
    """A name server that counts its questions and may change its mind."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        return [self.answers[min(len(self.asked), len(self.answers)) - 1]]


def refused(url: str, tmp_path: Path, config: MediaConfig, names: Names) -> str:
    with pytest.raises(ApiError) as caught:
        fetch_https(url, tmp_path / "video", config, names)
    assert "127.0.0.1" not in caught.value.message
    assert "/" not in caught.value.message
    return caught.value.code


def test_a_listed_host_is_fetched_by_name_from_the_address_it_was_resolved_to(server, tmp_path):
    names = Names("127.0.0.1")
    fetch_https(server.url("/clip.mp4", "video.test"), tmp_path / "video", config_for(server), names)
    assert (tmp_path / "video").read_bytes() == server.files["/clip.mp4"]
    assert server.seen[-1] == (f"video.test:{server.port}", "/clip.mp4")
    assert names.asked == ["video.test"]


def test_a_name_is_asked_for_once_so_that_a_second_answer_changes_nothing(server, tmp_path):
    names = Names("127.0.0.1", "169.254.169.254")
    fetch_https(server.url("/clip.mp4", "video.test"), tmp_path / "video", config_for(server), names)
    assert len(names.asked) == 1


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1"])
def test_an_allowed_name_with_an_address_that_is_not_global_is_refused(server, tmp_path, address):
    code = refused(
        server.url("/clip.mp4", "video.test"), tmp_path, config_for(server, private_networks=()), Names(address)
    )
    assert code == "address_not_allowed"


def test_a_name_with_one_bad_address_among_good_ones_is_refused(server, tmp_path):
    def mixed(host: str, port: int) -> list[str]:
        return ["127.0.0.1", "10.0.0.1"]

    with pytest.raises(ApiError, match="not fetched from"):
        fetch_https(server.url("/clip.mp4", "video.test"), tmp_path / "video", config_for(server), mixed)


def test_the_next_address_is_tried_where_one_takes_no_connection(server, tmp_path):
    config = config_for(server, private_networks=("127.0.0.0/8",))
    url = server.url("/clip.mp4", "video.test")
    fetch_https(url, tmp_path / "video", config, lambda host, port: ["127.0.0.3", "127.0.0.1"])
    assert (tmp_path / "video").read_bytes() == server.files["/clip.mp4"]
    with pytest.raises(ApiError, match="did not answer"):
        fetch_https(url, tmp_path / "video", config, lambda host, port: ["127.0.0.3", "127.0.0.4"])


def test_a_redirect_to_a_listed_host_is_followed(server, tmp_path):
    server.redirects["/moved"] = server.url("/clip.mp4", "other.test")
    names = Names("127.0.0.1")
    fetch_https(server.url("/moved", "video.test"), tmp_path / "video", config_for(server), names)
    assert names.asked == ["video.test", "other.test"]


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("http://video.test/clip.mp4", "unsupported_url"),
        ("file:///etc/passwd", "unsupported_url"),
        ("https://evil.test/clip.mp4", "host_not_allowed"),
        ("https://169.254.169.254/latest/meta-data", "host_not_allowed"),
        ("https://[::ffff:169.254.169.254]/", "host_not_allowed"),
        ("//evil.test/clip.mp4", "host_not_allowed"),
        ("https://video.test@evil.test/", "invalid_url"),
        ("", "fetch_failed"),  # back to itself
    ],
)
def test_a_redirect_is_checked_like_the_first_url(server, tmp_path, target, code):
    server.redirects["/away"] = target
    assert refused(server.url("/away", "video.test"), tmp_path, config_for(server), Names("127.0.0.1")) == code


def test_a_redirect_to_a_listed_name_inside_the_network_is_refused(server, tmp_path):
    server.redirects["/inside"] = server.url("/clip.mp4", "other.test")
    names = Names("127.0.0.1", "10.0.0.1")
    assert refused(server.url("/inside", "video.test"), tmp_path, config_for(server), names) == "address_not_allowed"


def test_a_chain_of_redirects_ends(server, tmp_path):
    for hop in range(6):
        server.redirects[f"/hop{hop}"] = f"/hop{hop + 1}"
    before = len(server.seen)
    assert (
        refused(server.url("/hop0", "video.test"), tmp_path, config_for(server), Names("127.0.0.1")) == "fetch_failed"
    )
    assert len(server.seen) - before == 4


@pytest.mark.parametrize("path", ["/endless", "/lying-length"])
def test_a_download_stops_at_the_limit(server, tmp_path, path):
    code = refused(server.url(path, "video.test"), tmp_path, config_for(server), Names("127.0.0.1"))
    assert code == "video_too_large"


def test_an_error_status_is_no_video(server, tmp_path):
    assert (
        refused(server.url("/none", "video.test"), tmp_path, config_for(server), Names("127.0.0.1")) == "fetch_failed"
    )


def test_a_certificate_of_unknown_issuer_is_refused(server, tmp_path):
    config = config_for(server, ca_file=None)
    assert refused(server.url("/clip.mp4", "video.test"), tmp_path, config, Names("127.0.0.1")) == "fetch_failed"


def test_a_certificate_for_another_name_is_refused(server, tmp_path):
    config = config_for(server, https_hosts=(f"wrong.test:{server.port}",))
    assert refused(server.url("/clip.mp4", "wrong.test"), tmp_path, config, Names("127.0.0.1")) == "fetch_failed"


def test_a_name_without_address_is_refused(server, tmp_path):
    with pytest.raises(ApiError, match="no address"):
        fetch_https(server.url("/clip.mp4", "video.test"), tmp_path / "v", config_for(server), lambda host, port: [])


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "clip.mp4").write_bytes(b"inside")
    (tmp_path / "secret.mp4").write_bytes(b"outside")
    (tmp_path / "root-other").mkdir()
    (tmp_path / "root-other" / "clip.mp4").write_bytes(b"outside")
    return folder


def test_a_file_below_the_root_is_read(root, tmp_path):
    copy_local(f"file://{root}/clip.mp4", tmp_path / "copy", MediaConfig(file_root=str(root)))
    assert (tmp_path / "copy").read_bytes() == b"inside"


def test_files_outside_the_root_read_like_absent_ones(root, tmp_path):
    (root / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (root / "folder").symlink_to(tmp_path)
    os.mkfifo(root / "pipe.mp4")
    names = [
        f"{root}/none.mp4",
        f"{root}/link.mp4",
        f"{root}/folder/secret.mp4",
        f"{root}/../secret.mp4",
        f"{root}/%2e%2e/secret.mp4",
        f"{tmp_path}/root-other/clip.mp4",
        f"{root}/pipe.mp4",
        f"{root}",
        "/etc/passwd",
        "/dev/zero",
        "/proc/self/environ",
        "/" + "a" * 4000,
    ]
    messages = set()
    for name in names:
        with pytest.raises(ApiError) as caught:
            copy_local(f"file://{name}", tmp_path / "copy", MediaConfig(file_root=str(root)))
        messages.add((caught.value.code, caught.value.message))
    assert len(messages) == 1
    assert str(tmp_path) not in messages.pop()[1]


def test_a_large_local_file_is_refused(root, tmp_path):
    with pytest.raises(ApiError, match="larger than"):
        copy_local(f"file://{root}/clip.mp4", tmp_path / "copy", MediaConfig(file_root=str(root), max_bytes=3))


def test_a_disk_that_fills_up_is_told(root):
    with pytest.raises(ApiError, match="503 no_space"):
        copy_local(f"file://{root}/clip.mp4", Path("/dev/full"), MediaConfig(file_root=str(root)))
