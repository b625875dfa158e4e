"""Configurations from files and ``section.key=value``; mistakes are one line that names a key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ValidationError,
)

from synthgen.config.audit import AuditConfig
from synthgen.config.settings import RETIRED, Config, Section
from synthgen.registry import RENAMED, near_miss
from synthgen.storage.untrusted import MAX_QUOTE, one_line, quote

S = TypeVar("S", bound=Section)

MAX_BYTES = 2**20
"""Largest configuration that is read; a complete one has 3 KB."""

MAX_DEPTH = 16
"""Nesting of a configuration in YAML; the settings have 4 levels."""


def load(
    path: Path | str | None = None,
    overrides: Sequence[str] = (),
    given: Mapping[str, Any] | None = None,
) -> Config:
    """The configuration in a YAML or JSON file, changed by ``section.key=value`` overrides.

    Args:
        path: File to read; None starts from the defaults.
        overrides: Assignments such as ``segmentation.clusters.ks=[2,5]``; values are YAML.
        given: Values by key that are taken as they are, such as a file's name.

    Raises:
        ValueError: In one line, for an unreadable file, an unknown key or a bad value.
    """
    tree = _read(Path(path)) if path is not None else {}
    for assignment in overrides:
        _assign(tree, assignment)
    _retire(tree, strict=True)
    return _validate({**tree, **(given or {})}, Config)


def parse(content: bytes) -> Config:
    """The configuration in the bytes of a YAML or JSON document, such as a dataset's.

    Raises:
        ValueError: In one line, as `load` does.
    """
    tree = _parse(content)
    _retire(tree, strict=False)
    return _validate(tree, Config)


def _retire(tree: dict[str, Any], strict: bool) -> None:
    """Make a tree of earlier versions one of today; a dataset's own settings may have any value.

    Raises:
        ValueError: If it is strict, for a value that nothing heeds any more.
    """
    for key, only in RETIRED.items():
        *sections, leaf = key.split(".")
        found: Any = tree
        for section in sections:
            found = found.get(section) if isinstance(found, dict) else None
        if isinstance(found, dict) and leaf in found:
            value = found.pop(leaf)
            if strict and value != only:
                raise ValueError(f"{key} is no setting any more. Got {value!r:.40}; leave it out.")
    if strict:
        return
    segmentation, labeling = tree.get("segmentation"), tree.get("labeling")
    if isinstance(segmentation, dict):
        segmentation.setdefault("refiner", "none")  # of before there was one
    if isinstance(labeling, dict):
        for old, new in RENAMED.items():
            key, _, name = old.removeprefix("labeling.").partition("=")
            if labeling.get(key) == name:
                labeling[key] = new


def _validate(tree: dict[str, Any], section: type[S]) -> S:
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        raise ValueError(describe(error, section)) from None


def load_audit(overrides: Sequence[str] = ()) -> AuditConfig:
    """The settings of an audit: the defaults changed by ``section.key=value`` overrides.

    Raises:
        ValueError: In one line, for an unknown key or a bad value.
    """
    return load_section(AuditConfig, overrides)


def load_section(section: type[S], overrides: Sequence[str] = (), **given: Any) -> S:
    """Settings of any kind: given values, changed by ``section.key=value`` overrides.

    Raises:
        ValueError: In one line, for an unknown key or a bad value.
    """
    tree: dict[str, Any] = dict(given)
    for assignment in overrides:
        _assign(tree, assignment)
    return _validate(tree, section)


def dump(config: Config) -> str:
    """The resolved configuration as YAML; ``load`` reads it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def describe(error: ValidationError, section: type[BaseModel] = Config) -> str:
    """The first setting that a validation error is about, as one line that says what to do."""
    known = _known_keys(section)
    first = error.errors()[0]
    if first["type"] == "extra_forbidden":
        key = one_line(".".join(str(part) for part in first["loc"]), MAX_QUOTE)
        show = "synthgen config show" if section is Config else "--help"
        hint = near_miss(key, sorted(known)) or f" See '{show}'."
        return f"{key} must be a known setting. Got an unknown key.{hint}"
    key = _setting(first["loc"], known)
    about = [item for item in error.errors() if _setting(item["loc"], known) == key]
    wants = [item["msg"].removeprefix("Value error, ").rstrip(".") for item in about]
    message = " or ".join(dict.fromkeys(want[0].lower() + want[1:] for want in wants))
    got = "" if "Got" in message else f". Got {quote(first['input'])}"
    end = "" if message.endswith("?") else "."
    return f"{one_line(key, MAX_QUOTE)} is not valid: {one_line(message)}{got}{end}"


def _setting(loc: tuple[int | str, ...], known: set[str]) -> str:
    """The longest prefix of an error's location that is a setting; union branches follow it."""
    parts = [str(part) for part in loc]
    prefixes = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in known), ".".join(parts))


def _known_keys(section: type[BaseModel], prefix: str = "") -> set[str]:
    keys: set[str] = set()
    for name, info in section.model_fields.items():
        keys.add(prefix + name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            keys |= _known_keys(info.annotation, f"{prefix}{name}.")
    return keys


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            return _parse(stream.read(MAX_BYTES + 1))
    except OSError as error:
        raise ValueError(f"The configuration must be a readable file. Got {error}.") from None


def _parse(content: bytes) -> dict[str, Any]:
    """The mapping that an untrusted YAML document is."""
    if len(content) > MAX_BYTES:
        raise ValueError(f"The configuration must have at most {MAX_BYTES:,} bytes. Got more.")
    try:
        tree = _parse_yaml(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"The configuration must be a readable file. Got {error}.") from None
    except ValueError as error:
        raise ValueError(f"The configuration must be valid YAML. Got {error}.") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ValueError(f"The configuration must be a mapping. Got {type(tree).__name__}.")
    return tree


def _parse_yaml(text: str) -> Any:
    """A value from YAML without aliases, of bounded depth.

    An alias can stand for a tree of gigabytes (with ``<<`` PyYAML writes it out), and its loader
    recurses; the events before it do neither.

    Raises:
        ValueError: In one line.
    """
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ValueError(f"more than {MAX_DEPTH} levels")
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"an alias (*{one_line(event.anchor, 40)}); write it out")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(one_line(error)) from None
    except (LookupError, AttributeError, TypeError, ArithmeticError) as error:
        # PyYAML's own, for "!!bool x", "!!timestamp x" and the like
        raise ValueError(f"a value that is not of its tag ({one_line(repr(error), 60)})") from None


def _assign(tree: dict[str, Any], assignment: str) -> None:
    key, equals, value = assignment.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--set must have the form key=value. Got {quote(assignment)}.")
    *sections, leaf = key.strip().split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            key, section = one_line(key, MAX_QUOTE), one_line(section, 40)
            raise ValueError(f"--set {key}: {section} must be a section. Got a value.")
    try:
        tree[leaf] = _parse_yaml(value)
    except ValueError:
        key = one_line(key, MAX_QUOTE)
        raise ValueError(f"--set {key}: the value must be YAML. Got {quote(value)}.") from None
