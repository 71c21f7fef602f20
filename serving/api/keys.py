"""Bearer keys from a file, compared in constant time."""

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from cacovid.errors import UserError
from serving.errors import ApiError

MIN_LENGTH = 16


class Keys:
    """Knows digests only: a key itself is neither kept nor logged."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    @classmethod
    def read(cls, path: str | None) -> "Keys":
        """As :func:`read_keys`. None: no keys are asked for.

        Raises:
            UserError: no such file, no key in it, or one that is too short.
        """
        if path is None:
            return cls(())
        keys = read_keys(path)
        if min(map(len, keys)) < MIN_LENGTH:
            raise UserError(f"key file {path} holds a key of fewer than {MIN_LENGTH} characters: use a longer one")
        return cls(keys)

    @property
    def required(self) -> bool:
        """Whether requests need a key."""
        return bool(self._digests)

    def check(self, authorization: str | None) -> None:
        """Raise 401 unless the ``Authorization`` header carries a known key, or none is asked for."""
        if not self.required:
            return
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip())
        # Every digest is compared, so that the time tells nothing.
        known = sum(hmac.compare_digest(given, digest) for digest in self._digests)
        if scheme.lower() != "bearer" or not known:
            raise ApiError(401, "invalid_api_key", "give a valid API key as 'Authorization: Bearer KEY'")


def read_keys(path: str) -> list[str]:
    """One key a line; empty lines and lines with '#' in front are skipped.

    Raises:
        UserError: no such file, or no key in it.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the key file {path}: {type(error).__name__}") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise UserError(f"key file {path} holds no key: write one a line, e.g. from `openssl rand -hex 24`")
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
