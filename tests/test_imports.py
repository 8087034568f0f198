"""Imports point one way only: flows -> verify -> {accel, golden} -> quant.

The golden model is worth something as an oracle only as long as it shares no code with the accelerator.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

#: Which of our packages each of our packages may import, besides itself.
ALLOWED = {
    "flows": {"verify", "accel", "golden", "quant"},
    "verify": {"accel", "golden", "quant"},
    "accel": {"quant"},
    "golden": {"quant"},
    "quant": set(),
}

FORBIDDEN = [
    (importer, imported)
    for importer in ALLOWED
    for imported in ALLOWED
    if imported != importer and imported not in ALLOWED[importer]
]


def imported_modules(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Line and absolute name of every module that a syntax tree imports, at whatever depth.

    Parameters
    ----------
    tree : the parsed file.
    package : dotted name of the package that the file lies in, for relative imports.

    Yields
    ------
    An import whose name is computed has the name "?".
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = absolute("." * node.level + (node.module or ""), package)
            for alias in node.names:
                # "from . import accel" may name a module as well as a value.
                yield node.lineno, f"{base}.{alias.name}" if base else alias.name
        elif isinstance(node, ast.Call) and called_name(node) in ("import_module", "__import__"):
            name = literal_argument(node, 0, "name")
            yield (
                node.lineno,
                "?" if name is None else absolute(name, literal_argument(node, 1, "package") or package),
            )


def called_name(call: ast.Call) -> str:
    function = call.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def literal_argument(call: ast.Call, position: int, keyword: str) -> str | None:
    """The string that a call passes at a position or by a keyword; None if it is none or not a literal."""
    given = [*call.args[position : position + 1], *(k.value for k in call.keywords if k.arg == keyword)]
    if given and isinstance(given[0], ast.Constant) and isinstance(given[0].value, str):
        return given[0].value
    return None


def absolute(name: str, package: str) -> str:
    """Resolve leading dots as Python does: one is the package itself, each further one its parent."""
    stem = name.lstrip(".")
    level = len(name) - len(stem)
    if level == 0:
        return name
    parents = package.split(".")
    kept = parents[: max(0, len(parents) - (level - 1))]
    return ".".join([*kept, stem] if stem else kept)


def violations(root: Path) -> list[str]:
    """One line for each import against the arrows in the packages below a folder."""
    found = []
    for importer, allowed in ALLOWED.items():
        for path in sorted((root / importer).rglob("*.py")):
            relative = path.relative_to(root)
            tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
            for line, name in imported_modules(tree, ".".join(relative.parent.parts)):
                imported = name.split(".")[0]
                # flows may import everything, so that a computed name does no harm there.
                forbidden = imported in ALLOWED.keys() - allowed - {importer}
                if forbidden or (imported == "?" and importer != "flows"):
                    found.append(f"{relative}:{line}: {importer} imports {name}")
    return found


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_every_package_keeps_to_the_arrows() -> None:
    assert violations(ROOT) == []


def test_every_package_is_there_to_be_checked() -> None:
    assert [package for package in ALLOWED if not list((ROOT / package).glob("**/*.py"))] == []


@pytest.mark.parametrize(("importer", "imported"), FORBIDDEN)
def test_each_forbidden_arrow_is_found(importer: str, imported: str, tmp_path: Path) -> None:
    write(tmp_path, f"{importer}/block.py", f"import math\nimport {imported}.thing\n")
    assert violations(tmp_path) == [f"{importer}/block.py:2: {importer} imports {imported}.thing"]


@pytest.mark.parametrize(
    "statement",
    [
        "import accel",
        "import accel.pe as pe",
        "from accel import config",
        "from accel.pe.PeRTL import PeRTL",
        "from accel import *",
        "import math, accel",
        "from ...accel import config",
        "from ... import accel",
        "def late():\n    import accel",
        "class Late:\n    def late(self):\n        from accel import config",
        "if True:\n    import accel",
        "try:\n    import accel\nexcept ImportError:\n    accel = None",
        "import importlib\nimportlib.import_module('accel.config')",
        "from importlib import import_module\nimport_module('...accel', 'golden.deep')",
        "import importlib\nimportlib.import_module('...accel', package=__package__)",
        "import importlib\nimportlib.import_module(name='accel')",
        "__import__('accel')",
        "import importlib\nimportlib.import_module(chosen)",
        "import importlib\nimportlib.import_module(chosen, 'golden')",
    ],
)
def test_each_form_of_import_is_found(statement: str, tmp_path: Path) -> None:
    write(tmp_path, "golden/deep/module.py", statement + "\n")
    assert len(violations(tmp_path)) == 1


def test_allowed_imports_pass(tmp_path: Path) -> None:
    for importer, allowed in ALLOWED.items():
        lines = [f"import {name}.thing" for name in sorted(allowed | {importer})]
        lines += ["import numpy", "from . import sibling", "from accelerate import nothing_of_ours"]
        write(tmp_path, f"{importer}/deep/module.py", "\n".join(lines) + "\n")
    write(tmp_path, "golden/deep/relative.py", "from ..gemm import quant\nfrom .module import accel\n")
    write(tmp_path, "flows/plugins.py", "import importlib\nimportlib.import_module(chosen)\n")
    assert violations(tmp_path) == []
