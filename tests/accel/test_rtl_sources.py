"""Patterns in RTL sources that PyMTL3 3.1.17 takes without a word and then gets wrong."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ACCEL = Path(__file__).resolve().parents[2] / "accel"
SOURCES = sorted(ACCEL.rglob("*RTL.py"))


def extended_elements(tree: ast.AST) -> list[int]:
    """Lines of sext(x[i], …): translated as if x[i] were a single bit, also where x is a list of vectors."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, (ast.Name, ast.Attribute))
        and (node.func.id if isinstance(node.func, ast.Name) else node.func.attr) == "sext"
        and node.args
        and isinstance(node.args[0], ast.Subscript)
        and not isinstance(node.args[0].slice, ast.Slice)
    ]


def shared_names(tree: ast.AST) -> list[str]:
    """Update blocks of one class that share a name, in whatever branches they are.

    PyMTL3 keeps the source of a block under class and name: a second configuration in the same process
    gets the block of the first one, in its schedule and in its Verilog.
    """
    found = []
    for component in ast.walk(tree):
        if not isinstance(component, ast.ClassDef):
            continue
        names = set()
        for block in ast.walk(component):
            if not isinstance(block, ast.FunctionDef):
                continue
            decorators = {decorator.id for decorator in block.decorator_list if isinstance(decorator, ast.Name)}
            if decorators & {"update", "update_ff", "update_once"}:
                if block.name in names:
                    found.append(f"{component.name}.{block.name}")
                names.add(block.name)
    return found


def test_there_are_sources_to_check() -> None:
    assert {"PERTL.py", "ColumnFeederRTL.py", "ResultWriterRTL.py"} <= {path.name for path in SOURCES}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_element_of_a_list_is_sign_extended(path: Path) -> None:
    assert extended_elements(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_update_blocks_of_a_component_have_names_of_their_own(path: Path) -> None:
    assert shared_names(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("sext(s.acc[lane], 64)", True),
        ("s.a + sext(s.act[s.index[lane]], bits)", True),
        ("sext(s.rows[0][1], 8)", True),
        ("pymtl3.sext(s.acc[0], 64)", True),
        ("sext(s.word[0:8], 64)", False),
        ("sext(acc, 64)", False),
        ("zext(s.acc[lane], 64)", False),
    ],
)
def test_the_check_on_sext_sees_the_pattern(expression: str, found: bool) -> None:
    assert bool(extended_elements(ast.parse(expression))) == found


@pytest.mark.parametrize(("other", "found"), [("up_a", True), ("up_b", False)])
def test_the_check_on_names_sees_both_branches(other: str, found: bool) -> None:
    block = "            @update\n            def {}():\n                s.x @= 0\n"
    source = (
        "class BlockRTL(Component):\n    def construct(s, wide):\n"
        f"        if wide:\n{block.format('up_a')}        else:\n{block.format(other)}"
    )
    assert shared_names(ast.parse(source)) == (["BlockRTL.up_a"] if found else [])
