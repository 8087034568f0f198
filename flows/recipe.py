"""How each linear layer is stored: one way for all of them, or the ordered rules of a recipe file.

A recipe is a TOML file::

    default = "2:4"             # of every layer that no rule matches
    group = 128                 # optional here and in a rule: weights that share a scale
    method = "joint"            # optional likewise: how mask and codes are found
    symmetric = true            # ... whether there are no zero points
    scale_bits = 8              # ... bits of a group's scale, 8 or 16
    clip = true                 # ... whether groups' ranges are shrunk where that lowers their error
    awq = false                 # optional, of the whole model: scale input features first

    [[layer]]
    match = "*.down_proj"       # a layer's full name or its kind; * and ? as in file names
    pattern = "dense"           # n:m, dense, or float: the layer is not quantised
    group = 64

Of several rules that match a layer the last one counts, so general rules come first and exceptions after them. What
a rule leaves out is as at the file's top, and what that leaves out is the command's. ``nimble estimate`` heeds what
changes a layer's stream, and takes a float layer to run on the host.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from flows.info import pattern_name
from quant import METHODS, LayerSettings, NMPattern

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: The pattern of a layer that is not quantised.
FLOAT = "float"

_OPTIONAL_KEYS = ("group", "method", "symmetric", "scale_bits", "clip")


@dataclass(frozen=True)
class Rule:
    """How the layers whose full name or kind matches are stored; None leaves it to who asks."""

    match: str
    #: None where the layer is not quantised.
    pattern: NMPattern | None
    #: Weights that share a scale.
    group: int | None = None
    #: One of `quant.METHODS`.
    method: str | None = None
    symmetric: bool | None = None
    #: 8 or 16.
    scale_bits: int | None = None
    clip: bool | None = None

    def matches(self, name: str) -> bool:
        """Return whether the rule is meant for the layer of this full name; its kind is the last part of it."""
        return fnmatchcase(name, self.match) or fnmatchcase(_kind(name), self.match)

    def beside(self, default: Rule) -> Rule:
        """The same rule without what the default says, too."""
        said: dict[str, Any] = {key: None for key in _OPTIONAL_KEYS if getattr(self, key) == getattr(default, key)}
        return replace(self, **said)

    def settings(self, others: Mapping[str, Any]) -> LayerSettings | None:
        """How a layer is quantised, with `others` for what is left out; None if it is not.

        Raises
        ------
        ValueError
            m does not divide the group size.
        """
        if self.pattern is None:
            return None
        stated = {key: value for key in _OPTIONAL_KEYS if (value := getattr(self, key)) is not None}
        merged = {**others, **stated}
        if "group" in merged:
            merged["group_size"] = merged.pop("group")
        return LayerSettings(self.pattern, **merged)


@dataclass(frozen=True)
class Recipe:
    """A rule for every linear layer."""

    #: The pattern, or the file's name.
    name: str
    #: Of the layers that no other rule matches, and for what the others leave out.
    default: Rule
    rules: tuple[Rule, ...] = ()
    #: Whether input features are scaled first, by AWQ; None leaves it to who asks.
    awq: bool | None = None

    @classmethod
    def uniform(cls, pattern: NMPattern) -> Recipe:
        """Return the recipe that gives all layers one pattern."""
        return cls(pattern_name(pattern), Rule("*", pattern))

    @classmethod
    def of_choices(cls, name: str, choices: Mapping[str, LayerSettings | None], awq: bool | None = None) -> Recipe:
        """Return a short recipe that gives each layer of `choices`, by full name, exactly its settings.

        The commonest settings are the default, and rules say what differs. Kinds whose layers all agree get one rule.
        """
        rules = {name: _rule_of(name, settings) for name, settings in choices.items()}
        commonest = Counter(replace(rule, match="*") for rule in rules.values()).most_common(1)[0][0]
        by_kind: dict[str, list[Rule]] = {}
        for rule in rules.values():
            by_kind.setdefault(_kind(rule.match), []).append(rule)
        exceptions: list[Rule] = []
        for kind, members in by_kind.items():
            alike = {replace(rule, match=kind) for rule in members}
            if len(alike) == 1:
                members = list(alike)
            exceptions += [rule.beside(commonest) for rule in members if replace(rule, match="*") != commonest]
        return cls(name, commonest, tuple(exceptions), awq)

    def rule_of(self, name: str) -> Rule:
        """Return the rule for the layer of this full name, completed from the default."""
        for rule in reversed(self.rules):
            if rule.matches(name):
                missing = {key: getattr(self.default, key) for key in _OPTIONAL_KEYS if getattr(rule, key) is None}
                return replace(rule, **missing)
        return self.default

    def check(self, names: Iterable[str]) -> None:
        """Refuse a rule that none of the layers of these full names matches.

        Raises
        ------
        ValueError
            Naming the rule and the kinds of layers that there are.
        """
        names = tuple(names)
        for rule in self.rules:
            if not any(rule.matches(name) for name in names):
                kinds = ", ".join(dict.fromkeys(_kind(name) for name in names))
                raise ValueError(
                    f"The rule {rule.match!r} of {self.name} matches no layer that it could prune; "
                    f"their kinds are {kinds or 'none'}."
                )

    def to_toml(self) -> str:
        """Return the file that `read_recipe` reads as this recipe, its name apart."""
        lines = [f"default = {_toml(self.default.pattern)}", *_lines(self.default)]
        if self.awq is not None:
            lines.append(f"awq = {_toml(self.awq)}")
        for rule in self.rules:
            lines += ["", "[[layer]]", f"match = {_toml(rule.match)}", f"pattern = {_toml(rule.pattern)}"]
            lines += _lines(rule)
        return "\n".join(lines) + "\n"


def _kind(name: str) -> str:
    return name.rpartition(".")[2]


def _rule_of(name: str, settings: LayerSettings | None) -> Rule:
    if settings is None:
        return Rule(name, None)
    return Rule(
        name,
        settings.pattern,
        settings.group_size,
        settings.method,
        settings.symmetric,
        settings.scale_bits,
        settings.clip,
    )


def _lines(rule: Rule) -> list[str]:
    values = {key: getattr(rule, key) for key in _OPTIONAL_KEYS}
    return [f"{key} = {_toml(value)}" for key, value in values.items() if value is not None]


def _toml(value: object) -> str:
    if value is None:
        value = FLOAT
    elif isinstance(value, NMPattern):
        value = pattern_name(value)
    return json.dumps(value)  # of strings, integers and booleans, JSON is TOML too


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
    _check_keys(f"The recipe {file}", document, ("default",), ("layer", *_OPTIONAL_KEYS, "awq"))
    rules = document.get("layer", [])
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise ValueError(f"The layer of the recipe {file} is {rules!r}; rules are tables headed [[layer]].")
    where = f"The default of the recipe {file}"
    default = _read_values(where, "*", {**document, "pattern": document["default"]})
    _check_flag(f"The recipe {file}", "awq", document.get("awq"))
    recipe = Recipe(
        name=file.name,
        default=default,
        rules=tuple(_read_rule(f"Rule {number} of the recipe {file}", rule) for number, rule in enumerate(rules, 1)),
        awq=document.get("awq"),
    )
    for number, rule in enumerate(recipe.rules, 1):
        if rule.group is None:
            _check_group(f"Rule {number} of the recipe {file}", rule.pattern, default.group)
    return recipe


def _read_rule(where: str, values: dict[str, Any]) -> Rule:
    _check_keys(where, values, ("match", "pattern"), _OPTIONAL_KEYS)
    match = values["match"]
    if not isinstance(match, str) or not match:
        raise ValueError(f"{where} has match = {match!r}; it is a layer's name or kind, * and ? allowed.")
    return _read_values(where, match, values)


def _read_values(where: str, match: str, values: Mapping[str, Any]) -> Rule:
    """The rule of values whose keys are known to be right."""
    pattern = _read_pattern(where, values["pattern"])
    given = {key: values.get(key) for key in _OPTIONAL_KEYS}
    group, method, scale_bits = given["group"], given["method"], given["scale_bits"]
    if group is not None and (isinstance(group, bool) or not isinstance(group, int)):
        raise ValueError(f"{where} has group = {group!r}; it must be an integer.")
    _check_group(where, pattern, group)
    if method is not None and method not in METHODS:
        raise ValueError(f"{where} has method = {method!r}; it must be one of {', '.join(METHODS)}.")
    if scale_bits is not None and (isinstance(scale_bits, bool) or scale_bits not in (8, 16)):
        raise ValueError(f"{where} has scale_bits = {scale_bits!r}; it must be 8 or 16.")
    for key in ("symmetric", "clip"):
        _check_flag(where, key, given[key])
    return Rule(match, pattern, **given)


def _check_flag(where: str, key: str, value: object) -> None:
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{where} has {key} = {value!r}; it must be true or false.")


def _check_group(where: str, pattern: NMPattern | None, group: int | None) -> None:
    if pattern is None or group is None:
        return
    try:
        pattern.check_group_size(group)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _read_pattern(where: str, value: object) -> NMPattern | None:
    if not isinstance(value, str):
        raise ValueError(f'{where} has the pattern {value!r}; it must be a string such as "2:4", "dense" or "float".')
    if value.strip() == FLOAT:
        return None
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
