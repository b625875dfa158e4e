"""Files by URL: which file systems are known, where their credentials come from, their errors.

Only schemes of ``SCHEMES`` are opened. ``s3`` is tested against a real server; ``gs`` and ``az``
go the same way once their fsspec package is installed. Credentials and endpoints come from the
environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL, …) or a profile, never from a URL,
which would carry them into configurations, logs and the server's database.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec

from synthgen.redaction import redact
from synthgen.untrusted import one_line, quote

LOCAL = ("file", "memory")
"""memory serves the tests: it goes the way that object stores go."""

SCHEMES = (*LOCAL, "s3", "gs", "gcs", "az", "abfs")

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
    fresh = {} if scheme in LOCAL else {"use_listings_cache": False}  # others write there too
    try:
        fs, root = fsspec.core.url_to_fs(url, **fresh)
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
        OSError: In one line, if the store cannot be reached.
    """
    fs, path = open_url(url)
    with reaching(url):
        try:
            size = int(fs.info(path)["size"])
        except FileNotFoundError:
            raise ValueError(
                f"{one_line(url)}: must be an existing file. Got none; check the URL."
            ) from None
        if size > max_bytes:
            raise ValueError(
                f"{one_line(url)}: must have at most {max_bytes:,} bytes. Got {size:,}; "
                f"split the file."
            )
        content: bytes = fs.cat_file(path)
    return content


@contextmanager
def reaching(where: str) -> Iterator[None]:
    """Turn whatever a remote store's client raises into one line without secrets.

    A missing file stays what it is, for callers ask whether there is one.

    Raises:
        OSError: If the store cannot be reached, refuses us, or breaks off.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise
    except Exception as error:
        said = one_line(redact(str(error))) or "no message"
        raise OSError(
            f"The store of {one_line(where)} must answer and let us in. "
            f"Got {type(error).__name__}: {said}. "
            f"Check the endpoint, and the credentials in the environment or profile; then run "
            f"again: complete shards are kept."
        ) from None
