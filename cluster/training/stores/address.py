"""Where a store is: its URI taken apart, with keys hidden wherever it is shown."""

import hashlib
import re
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from cacovid.errors import UserError

OPEN = frozenset({"region", "scheme", "endpoint_override", "tls_verify_certificates", "replication", "kerb_ticket"})
HIDDEN = "***"
PYARROW = frozenset({"s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss", "file"})
REFUSED = {
    "memory": "is gone with this process",
    "http": "cannot be written",
    "https": "cannot be written",
}


@dataclass(frozen=True)
class StoreAddress:
    """A folder in a store.

    Attributes:
        uri: As given, keys included: never to be printed.
        shown: The same with user, password and unknown options as ``***``.
    """

    uri: str = field(repr=False)
    shown: str
    _secrets: tuple[str, ...] = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The store that ``text`` names; None where it is a local folder.

        Raises:
            UserError: It is neither, or a store that cannot hold a run.
        """
        scheme, colon, rest = text.partition(":")
        if not rest.startswith("//"):
            if colon and scheme in PYARROW | REFUSED.keys():
                raise UserError(f"{scheme}: is no folder and no URI: write {scheme}://... for a store")
            return None
        if not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme):
            raise UserError(f"{scheme!r} is no kind of store: give a folder, or a URI as s3://bucket/run")
        if scheme in REFUSED:
            raise UserError(f"{scheme}:// {REFUSED[scheme]}: a run needs a folder or a store, e.g. s3://bucket/run")
        try:
            parts = urlsplit(text)
            options = parse_qsl(parts.query, keep_blank_values=True)
        except ValueError as error:
            raise UserError(f"the {scheme}:// address cannot be read: write e.g. s3://bucket/run") from error
        return cls(text, _shown(parts, options), _secrets(parts, options))._checked(parts)

    def _checked(self, parts: SplitResult) -> Self:
        names = parts.path.strip("/").split("/")
        if not names[0]:
            raise UserError(f"{self.shown} names no folder: give one in it, e.g. s3://bucket/run")
        if any(name in ("", ".", "..") for name in names):
            raise UserError(f"{self.shown} holds an empty name, '.' or '..': write the folder's plain path")
        return self

    @property
    def digest(self) -> str:
        """The same for the same folder, whatever the keys."""
        return hashlib.sha256(self.shown.encode()).hexdigest()[:12]

    @property
    def path_name(self) -> str:
        """The last name of its path."""
        return urlsplit(self.shown).path.rpartition("/")[2]

    def hide(self, text: str) -> str:
        """``text``, one line of it, without any key of this address."""
        line = text.strip().partition("\n")[0].replace(self.uri, self.shown)
        for secret in self._secrets:
            line = line.replace(secret, HIDDEN)
        return line

    def beside(self, name: str) -> str:
        """How the folder ``name`` beside this one is shown."""
        parts = urlsplit(self.shown)
        return parts._replace(path=f"{parts.path.rpartition('/')[0]}/{name}").geturl()

    @property
    def folder(self) -> str:
        """As shown, without the options behind the path."""
        return self.shown.partition("?")[0]


def _user_is_open(parts: SplitResult) -> bool:
    return parts.scheme.startswith("abfs")  # the container


def _shown(parts: SplitResult, options: list[tuple[str, str]]) -> str:
    user, at, host = parts.netloc.rpartition("@")
    if at:
        name, colon, _ = user.partition(":")
        user = (name if _user_is_open(parts) else HIDDEN) + (f":{HIDDEN}" if colon else "")
    query = "&".join(f"{key}={value if _is_open(key, value) else HIDDEN}" for key, value in sorted(options))
    shown = parts._replace(netloc=user + at + host, path=parts.path.rstrip("/"), query=query, fragment="")
    return shown.geturl()


def _is_open(key: str, value: str) -> bool:
    return key in OPEN and "@" not in value


def _secrets(parts: SplitResult, options: list[tuple[str, str]]) -> tuple[str, ...]:
    names = [parts.password, None if _user_is_open(parts) else parts.username]
    found = {name for name in names if name} | {value for key, value in options if value and not _is_open(key, value)}
    return tuple(sorted(found | {unquote(name) for name in found}, key=len, reverse=True))
