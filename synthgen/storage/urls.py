"""Files by URL: which file systems are known, where their credentials come from, their errors.

Only schemes of ``SCHEMES`` are opened. ``s3`` is tested against a real server; ``gs`` and ``az``
go the same way once their fsspec package is installed. Credentials and endpoints come from the
environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL, …) or a profile, never from a URL,
which would carry them into configurations, logs and the server's database.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import fsspec

from synthgen.storage.redaction import redact
from synthgen.storage.untrusted import one_line, quote

LOCAL = ("file", "memory")
"""memory serves the tests: it goes the way that object stores go."""

SCHEMES = (*LOCAL, "s3", "gs", "gcs", "az", "abfs")

PAUSES = (0.2, 0.6, 1.8)
"""Seconds between the times that a store is asked."""

Answer = TypeVar("Answer")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")


def scheme_of(url: str) -> str | None:
    """The scheme of a URL in lower case, None for a local path.

    >>> scheme_of("S3://bucket/data"), scheme_of("some/folder")
    ('s3', None)
    """
    found = _SCHEME.match(url)
    return None if found is None else found[1].lower()


def check_url(url: str) -> None:
    """Refuse a URL that would not be opened; its package need not be installed.

    Raises:
        ValueError: In one line, for ``pipe:`` and every other scheme that is not known, a chain of
            them, credentials in the URL, or a single slash, which would name a local folder.

    >>> check_url("s3:/bucket/data")
    Traceback (most recent call last):
    ValueError: A URL must have two slashes after s3:, such as s3://bucket/data. Got one or none.
    """
    scheme = scheme_of(url)
    if scheme not in SCHEMES or "::" in url:
        raise ValueError(
            f"A dataset must be a local folder or a URL with one of the schemes "
            f"{', '.join(SCHEMES)}. Got {quote(scheme, 40)}."
        )
    if not url[len(scheme) :].startswith("://"):
        raise ValueError(
            f"A URL must have two slashes after {scheme}:, such as {scheme}://bucket/data. "
            f"Got one or none."
        )
    if scheme not in LOCAL and re.search(r"[@?#]", url):
        raise ValueError(
            "A URL must not hold credentials. Got one that does; use AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or a profile and AWS_PROFILE."
        )


def open_url(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path in it.

    Raises:
        ValueError: In one line, for what ``check_url`` refuses, or a package that is missing.

    >>> open_url("memory://a/b")[1]
    '/a/b'
    >>> open_url("s3://me:secret@bucket/data")
    Traceback (most recent call last):
    ValueError: A URL must not hold credentials. Got one that does; use AWS_ACCESS_KEY_ID and ...
    """
    check_url(url)
    scheme = scheme_of(url)
    options: dict[str, Any] = {}
    if scheme not in LOCAL:
        options["use_listings_cache"] = False  # others write there too
    if scheme == "s3":  # some servers send the whole object's checksum with a piece of it
        options["config_kwargs"] = {"response_checksum_validation": "when_required"}
    try:
        fs, root = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        extra = "'.[s3]'" if scheme == "s3" else f"fsspec's package for {scheme}"
        raise ValueError(
            f"{scheme} must be installed: pip install {extra}. Got {error}."
        ) from None
    return fs, str(root).rstrip("/")


def read_url(url: str, max_bytes: int) -> bytes:
    """Content of a file of at most ``max_bytes``.

    Raises:
        ValueError: If it is no such file; the message is one line.
        StoreError: If the store cannot be reached, refuses us, or breaks off.
    """
    fs, path = open_url(url)
    try:
        size = int(ask(fs, url, lambda: fs.info(path), there=True)["size"])
    except FileNotFoundError:
        raise ValueError(
            f"{one_line(url)}: must be an existing file. Got none; check the URL."
        ) from None
    if size > max_bytes:
        raise ValueError(
            f"{one_line(url)}: must have at most {max_bytes:,} bytes. Got {size:,}; "
            f"split the file."
        )
    content: bytes = ask(fs, url, lambda: fs.cat_file(path), there=True)
    return content


class StoreError(OSError):
    """What went wrong with a store, in one line without secrets, and what to do."""


def ask(fs: Any, where: str, act: Callable[[], Answer], there: bool = False) -> Answer:
    """What a store answers, asked up to four times while that may help.

    Errors of the server, answers that nobody can read and refusals may pass; before the next try
    after a refusal, credentials are read anew, for a profile may have been renewed. A store that
    cannot be reached is not asked again: its client did that.

    Args:
        where: What is asked, for the message.
        there: The file must be there. Stores of many machines may answer that it is not, for a
            while, although they took it; so a missing one is asked for again, too.

    Raises:
        FileNotFoundError: If there is no such file; callers ask whether there is one.
        StoreError: If the store cannot be reached, refuses us, or gives no answer to go by.
    """
    renewed = False
    for pause in (*PAUSES, None):
        try:
            return act()
        except (FileNotFoundError, NotADirectoryError):
            if pause is None or not there:
                raise
        except Exception as error:
            if pause is None or _is_away(error):
                raise _store_error(where, error) from None
            if not renewed and (isinstance(error, PermissionError) or "Expired" in str(error)):
                renewed = True
                with suppress(Exception):  # the next try says what is wrong
                    fs.connect(refresh=True)
        time.sleep(pause)
    raise AssertionError


def _is_away(error: Exception) -> bool:
    """Whether nobody answered at all; botocore's errors are known by name, for it may be missing.

    >>> _is_away(ConnectionRefusedError()), _is_away(ConnectionResetError())
    (True, False)
    """
    names = ("EndpointConnectionError", "ConnectTimeoutError", "NoCredentialsError")
    return isinstance(error, ConnectionRefusedError) or type(error).__name__ in names


def _store_error(where: str, error: Exception) -> StoreError:
    said = one_line(redact(str(error))) or "no message"
    if isinstance(error, PermissionError) or "redential" in type(error).__name__:
        must, do = "let us in", "Renew or check the credentials in the environment or profile"
    elif _is_away(error):
        must, do = "answer", "Check the endpoint"
    else:
        must, do = "answer without errors", "Check the store and the way to it"
    return StoreError(
        f"The store of {one_line(where)} must {must}. Got {type(error).__name__}: "
        f"{said.rstrip('.')}. {do}, then run the same command again: what is complete is kept."
    )
