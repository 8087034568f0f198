"""Which pattern each linear layer gets: one for all of them, or the ordered rules of a recipe file.

A recipe is a TOML file::

    default = "2:4"             # of every layer that no rule matches

    [[layer]]
    match = "*.down_proj"       # a layer's full name or its kind; * and ? as in file names
    pattern = "dense"
    group = 64                  # optional: weights that share a scale

Of several rules that match a layer the last one counts, so general rules come first and exceptions after them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.info import pattern_name
from quant import NMPattern

if TYPE_CHECKING:
    from flows.model_trace import LinearLayer

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_RULE_KEYS = ("match", "pattern", "group")


@dataclass(frozen=True)
class Rule:
    """A pattern for the layers whose full name or kind matches."""

    match: str
    pattern: NMPattern
    #: Weights that share a scale; None leaves it to the estimate's own group.
    group: int | None = None

    def matches(self, layer: LinearLayer) -> bool:
        """Return whether the rule is meant for a layer."""
        return fnmatchcase(layer.name, self.match) or fnmatchcase(layer.kind, self.match)


@dataclass(frozen=True)
class Recipe:
    """A pattern for every linear layer."""

    #: The pattern, or the file's name.
    name: str
    default: NMPattern
    rules: tuple[Rule, ...] = ()

    @classmethod
    def uniform(cls, pattern: NMPattern) -> Recipe:
        """Return the recipe that gives all layers one pattern."""
        return cls(pattern_name(pattern), pattern)

    def choose(self, layer: LinearLayer, group: int) -> tuple[NMPattern, int]:
        """Return a layer's pattern and its group, which is `group` unless a rule states another."""
        for rule in reversed(self.rules):
            if rule.matches(layer):
                return rule.pattern, group if rule.group is None else rule.group
        return self.default, group

    def check(self, layers: Iterable[LinearLayer]) -> None:
        """Refuse a rule that none of the layers matches.

        Raises
        ------
        ValueError
            Naming the rule and the kinds of layers that there are.
        """
        layers = tuple(layers)
        for rule in self.rules:
            if not any(rule.matches(layer) for layer in layers):
                kinds = ", ".join(dict.fromkeys(layer.kind for layer in layers))
                raise ValueError(
                    f"The rule {rule.match!r} of {self.name} matches no layer that it could prune; "
                    f"their kinds are {kinds or 'none'}."
                )


def read_recipe(file: Path) -> Recipe:
    """Return the recipe that a TOML file holds.

    Raises
    ------
    ValueError
        The file is not TOML, a key is unknown or missing, or a value is not possible.
    OSError
        The file cannot be read.
    """
    try:
        document = tomllib.loads(file.read_bytes().decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not TOML: byte {error.start} is not part of any UTF-8 text.") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file} is not TOML: {error}.") from None
    _check_keys(f"The recipe {file}", document, ("default",), ("layer",))
    rules = document.get("layer", [])
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise ValueError(f"The layer of the recipe {file} is {rules!r}; rules are tables headed [[layer]].")
    return Recipe(
        name=file.name,
        default=_read_pattern(f"The default of the recipe {file}", document["default"]),
        rules=tuple(_read_rule(f"Rule {number} of the recipe {file}", rule) for number, rule in enumerate(rules, 1)),
    )


def _read_rule(where: str, values: dict[str, Any]) -> Rule:
    _check_keys(where, values, _RULE_KEYS[:2], _RULE_KEYS[2:])
    match, group = values["match"], values.get("group")
    if not isinstance(match, str) or not match:
        raise ValueError(f"{where} has match = {match!r}; it is a layer's name or kind, * and ? allowed.")
    pattern = _read_pattern(where, values["pattern"])
    if group is not None:
        if isinstance(group, bool) or not isinstance(group, int):
            raise ValueError(f"{where} has group = {group!r}; it must be an integer.")
        try:
            pattern.check_group_size(group)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return Rule(match, pattern, group)


def _read_pattern(where: str, value: object) -> NMPattern:
    if not isinstance(value, str):
        raise ValueError(f'{where} has the pattern {value!r}; it must be a string such as "2:4" or "dense".')
    try:
        return NMPattern.parse(value)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _check_keys(where: str, values: dict[str, Any], required: tuple[str, ...], optional: tuple[str, ...]) -> None:
    missing = [key for key in required if key not in values]
    unknown = [key for key in values if key not in required + optional]
    if missing or unknown:
        raise ValueError(
            f"{where} takes {', '.join(required)} and perhaps {', '.join(optional)}; "
            f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}."
        )
