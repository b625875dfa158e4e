"""Stores by URL: what their clients say is passed on in one line, and no secret with it."""

from __future__ import annotations

import pytest

from synthgen.urls import reaching

SECRET = "wJalrXUtnFEMIbPxRfiCYEXAMPLEKEY"


def test_what_a_client_says_is_one_line_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    said = f"Forbidden:\n{SECRET} for https://me:pw@store/x?X-Amz-Signature=0a1b {'x' * 4000}"
    with pytest.raises(OSError, match="must answer and let us in") as caught, reaching("s3://b"):
        raise RuntimeError(said)
    line = str(caught.value)
    assert "Got RuntimeError: Forbidden: *** for https://***@store/x?X-Amz-Signature=***" in line
    assert "\n" not in line
    assert not any(secret in line for secret in (SECRET, "pw", "0a1b"))


def test_a_secret_that_the_length_of_a_line_would_cut_is_taken_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    for before in range(0, 400, 7):
        with pytest.raises(OSError) as caught, reaching("s3://b"):
            raise RuntimeError("x" * before + " " + SECRET)
        assert SECRET[:4] not in str(caught.value)


@pytest.mark.parametrize("kind", [FileNotFoundError, NotADirectoryError, ValueError])
def test_what_callers_ask_for_stays_what_it_is(kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"^as it was$"), reaching("s3://b"):
        raise kind("as it was")
