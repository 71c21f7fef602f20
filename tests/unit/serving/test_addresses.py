import pytest

from serving.config import MediaConfig
from serving.errors import ApiError
from serving.media.addresses import AddressPolicy
from serving.media.records import Sampling
from serving.media.urls import https_target, parse_video_url

NOT_GLOBAL = [
    "127.0.0.1",
    "127.255.0.3",
    "0.0.0.0",
    "10.0.0.8",
    "172.16.3.1",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "192.0.2.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "2001:db8::1",
    "fec0::1",
    "3fff::1",
    "192.88.99.1",
    "64:ff9b:1::a9fe:a9fe",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:10.0.0.1",
    "::7f00:1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "2001:0:7f00:1::1",
    "not an address",
    "",
]


@pytest.mark.parametrize("address", NOT_GLOBAL)
def test_addresses_that_are_not_global_are_refused(address):
    assert not AddressPolicy().allows(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1:248:1893:25c8:1946"])
def test_global_addresses_are_allowed(address):
    assert AddressPolicy().allows(address)


def test_a_named_private_network_is_allowed_and_no_other():
    policy = AddressPolicy.of(["10.1.2.0/24"])
    assert policy.allows("10.1.2.3")
    assert not policy.allows("10.1.3.3")
    assert not policy.allows("::ffff:10.1.3.3")


HOSTS = ("cdn.example.org", "store.example:8443")


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://cdn.example.org/a.mp4", "unsupported_url"),
        ("ftp://cdn.example.org/a.mp4", "unsupported_url"),
        ("gopher://cdn.example.org/", "unsupported_url"),
        ("javascript:alert(1)", "unsupported_url"),
        ("", "unsupported_url"),
        ("https://evil.example/a.mp4", "host_not_allowed"),
        ("https://cdn.example.org.evil.example/a.mp4", "host_not_allowed"),
        ("https://xcdn.example.org/a.mp4", "host_not_allowed"),
        ("https://cdn.example.org:22/a.mp4", "host_not_allowed"),
        ("https://store.example/a.mp4", "host_not_allowed"),
        ("https://[::ffff:127.0.0.1]/", "host_not_allowed"),
        ("https://cdn.example.org@evil.example/a.mp4", "invalid_url"),
        ("https://user:pass@cdn.example.org/a.mp4", "invalid_url"),
        ("https://cdn.example.org\\@evil.example/a.mp4", "invalid_url"),
        ("https://cdn.example.org\t/a.mp4", "invalid_url"),
        ("https://cdn.example.org/\r\nHost: evil", "invalid_url"),
        ("https://cdn.example.org/ümlaut.mp4", "invalid_url"),
        ("https://cdn。example.org/a.mp4", "invalid_url"),
        ("https://[::1/a.mp4", "invalid_url"),
        ("https://cdn.example.org:99999/a.mp4", "invalid_url"),
        ("https:///a.mp4", "invalid_url"),
        ("https://-bad-/a", "invalid_url"),
        ("https://cdn.example.org/" + "a" * 5000, "invalid_url"),
        ("file:///etc/passwd", "unsupported_url"),
        ("data:video/mp4,plain", "invalid_url"),
        ("data:video/mp4;base64", "invalid_url"),
        ("data:video/mp4;" + "a" * 300 + ";base64,AAAA", "invalid_url"),
        ("data:video/mp4;base64,", "empty_video"),
        ("data:text/html;base64,AAAA", "unsupported_media_type"),
        ("data:video/mp4;base64," + "A" * 4000, "video_too_large"),
    ],
)
def test_urls_that_are_refused_unread(url, code):
    config = MediaConfig(https_hosts=HOSTS, max_bytes=1000)
    with pytest.raises(ApiError) as caught:
        parse_video_url(url, Sampling(), config)
    assert caught.value.status == 422
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("url", "root", "code"),
    [
        ("file://otherhost/videos/a.mp4", "/videos", "invalid_url"),
        ("file:a.mp4", "/videos", "invalid_url"),
        ("file:///videos/a%00.mp4", "/videos", "invalid_url"),
        ("file:///videos/a.mp4?x=1", "/videos", "invalid_url"),
    ],
)
def test_malformed_file_urls_are_refused(url, root, code):
    with pytest.raises(ApiError) as caught:
        parse_video_url(url, Sampling(), MediaConfig(file_root=root))
    assert caught.value.code == code


def test_a_listed_host_is_taken_with_its_port_path_and_query():
    target = https_target("https://CDN.example.org./v/a.mp4?sig=1#x", HOSTS)
    assert (target.host, target.port, target.path, target.authority) == (
        "cdn.example.org",
        443,
        "/v/a.mp4?sig=1",
        "cdn.example.org",
    )
    assert https_target("https://store.example:8443", HOSTS).authority == "store.example:8443"


def test_a_star_lists_every_host_on_the_usual_port_only():
    assert https_target("https://any.example/a", ("*",)).host == "any.example"
    with pytest.raises(ApiError):
        https_target("https://any.example:8443/a", ("*",))


def test_frames_and_files_in_data_urls_are_told_apart():
    assert parse_video_url("data:video/jpeg;base64,AAAA,BBBB", Sampling(), MediaConfig()).kind == "frames"
    assert parse_video_url("data:video/mp4;base64,AAAA", Sampling(), MediaConfig()).kind == "data"


def test_a_video_input_hides_its_location_when_printed():
    video = parse_video_url("https://cdn.example.org/secret?sig=abc", Sampling(), MediaConfig(https_hosts=HOSTS))
    assert "secret" not in repr(video)
