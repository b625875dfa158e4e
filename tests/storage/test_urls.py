"""Stores by URL: what their clients say is passed on in one line, and no secret with it."""

from __future__ import annotations

from collections.abc import Callable

import fsspec
import pytest

from synthgen.storage import urls
from synthgen.storage.urls import StoreError, ask

SECRET = "wJalrXUtnFEMIbPxRfiCYEXAMPLEKEY"


class Answers:
    """A call that raises what it is given, in this order, then answers; counts both."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.asked, self.renewed = list(errors), 0, 0

    def __call__(self) -> str:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"

    def connect(self, refresh: bool) -> None:
        """Read credentials anew, as clients of stores do."""
        self.renewed += refresh


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "PAUSES", (0.0, 0.0, 0.0))


def raising(error: Exception) -> Callable[[], None]:
    return Answers(*[error] * 9)


def test_what_a_client_says_is_one_line_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    said = f"Forbidden:\n{SECRET} for https://me:pw@store/x?X-Amz-Signature=0a1b {'x' * 4000}"
    with pytest.raises(StoreError, match="must answer without errors") as caught:
        ask(None, "s3://b", raising(RuntimeError(said)))
    line = str(caught.value)
    assert "Got RuntimeError: Forbidden: *** for https://***@store/x?X-Amz-Signature=***" in line
    assert "what is complete is kept" in line
    assert "\n" not in line
    assert not any(secret in line for secret in (SECRET, "pw", "0a1b"))


def test_a_secret_that_the_length_of_a_line_would_cut_is_taken_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    for before in range(0, 400, 7):
        with pytest.raises(OSError) as caught:
            ask(None, "s3://b", raising(RuntimeError("x" * before + " " + SECRET)))
        assert SECRET[:4] not in str(caught.value)


def test_what_may_pass_is_asked_again() -> None:
    passing = Answers(OSError(5, "We encountered an internal error"), ValueError("no time stamp"))
    assert ask(passing, "s3://b", passing) == "answer"
    assert (passing.asked, passing.renewed) == (3, 0)
    expired = Answers(PermissionError("ExpiredToken"), OSError("400: ExpiredToken"))
    assert ask(expired, "s3://b", expired) == "answer"
    assert expired.renewed == 1
    refused = Answers(*[PermissionError("AccessDenied")] * 9)
    with pytest.raises(StoreError, match=r"must let us in\. Got PermissionError: AccessDenied"):
        ask(refused, "s3://b", refused)
    assert refused.asked == 4
    away = Answers(ConnectionRefusedError("no"))  # its client has tried
    with pytest.raises(StoreError, match=r"must answer\. Got ConnectionRefusedError: no\. Check"):
        ask(away, "s3://b", away)
    assert away.asked == 1


def test_only_what_must_be_there_is_looked_for_again() -> None:
    missing = Answers(*[FileNotFoundError("as it was")] * 9)
    with pytest.raises(FileNotFoundError, match=r"^as it was$"):
        ask(None, "s3://b", missing)
    assert missing.asked == 1
    late = Answers(FileNotFoundError(), FileNotFoundError())
    assert ask(None, "s3://b", late, there=True) == "answer"


def test_a_prompt_list_that_is_not_there_is_a_mistake() -> None:
    fsspec.filesystem("memory").pipe_file("/lists/a.jsonl", b"12345")
    assert urls.read_url("memory://lists/a.jsonl", 5) == b"12345"
    with pytest.raises(ValueError, match=r"must have at most 4 bytes\. Got 5"):
        urls.read_url("memory://lists/a.jsonl", 4)
    with pytest.raises(ValueError, match=r"must be an existing file\. Got none"):
        urls.read_url("memory://lists/b.jsonl", 4)
