"""Secrets are taken out of every text that reaches the disk: configuration, errors, logs.

A secret is what a name says it is (key, secret, token, password, signature) in an assignment or
a URL query, the user part of a URL, or the value of an environment variable with such a name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
_NAME = (
    r"(?:api_?key|access_?key|account_?key|secret|token(?!ize)|passw(?:or)?d|signature|credential)"
)
_SECRET_NAME = re.compile(rf"(?i){_NAME}|^key$|_key$|^sig$")
_ASSIGNMENT = re.compile(rf"(?i)([\w.-]*{_NAME}[\w.-]*[\"']?\s*[=:]\s*[\"']?)([^\s\"'&,;]+)")
_QUERY = re.compile(rf"(?i)([?&](?:key|sig|[\w.-]*{_NAME}[\w.-]*)=)([^&\s\"']+)")
_USER = re.compile(r"(?i)([a-z][a-z0-9+.-]*://)[^/\s@\"']+@")
_MIN_VALUE = 8  # shorter values of secret variables ("1", "true") are no secrets worth a search


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The text with every secret replaced by ``***``.

    Args:
        environment: Variables whose values are searched for; None: those of this process.

    >>> redact("GET https://me:pw@host/x?token=abc failed", {})
    'GET https://***@host/x?token=*** failed'
    >>> redact("wrong: hunter2hunter2", {"DB_PASSWORD": "hunter2hunter2"})
    'wrong: ***'
    """
    return _ASSIGNMENT.sub(rf"\1{HIDDEN}", _without_values(text, environment))


def redact_tree(tree: Any, environment: Mapping[str, str] | None = None) -> Any:
    """A JSON-like tree with secrets replaced, by key, and in strings by value and in URLs.

    What only looks like an assignment stays: ``(signature:1.4)`` is a weight in a prompt.

    >>> redact_tree({"s3": {"secret_key": "abc", "region": "x"}}, {})
    {'s3': {'secret_key': '***', 'region': 'x'}}
    >>> redact_tree({"hub_token": "abc", "tokenizer/vocab.json": "5e1"}, {})
    {'hub_token': '***', 'tokenizer/vocab.json': '5e1'}
    """
    if isinstance(tree, Mapping):
        return {
            name: HIDDEN
            if _SECRET_NAME.search(str(name)) and isinstance(value, str) and value
            else redact_tree(value, environment)
            for name, value in tree.items()
        }
    if isinstance(tree, list | tuple):
        return [redact_tree(value, environment) for value in tree]
    return _without_values(tree, environment) if isinstance(tree, str) else tree


def _without_values(text: str, environment: Mapping[str, str] | None) -> str:
    """The text without values of secret variables, users of URLs, and secrets in queries."""
    for name, value in (os.environ if environment is None else environment).items():
        if _SECRET_NAME.search(name) and len(value) >= _MIN_VALUE:
            text = text.replace(value, HIDDEN)
    return _QUERY.sub(rf"\1{HIDDEN}", _USER.sub(rf"\1{HIDDEN}@", text))
