"""Opens one translated block under pyverilator, to drive and read its pins by name.

For tests that look at single signals of a small block. Whole GEMMs go through `verilator_build`, which
crosses into Python once per GEMM instead of once per pin and cycle.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyverilator
from pymtl3 import Component
from pymtl3.passes.backends.verilog import VerilogTranslationPass

from verify.toolchain import activated, find_verilator
from verify.verilator_build import FATAL_WARNINGS, BuildError

#: pyverilator asks for C++11, which Verilator 5.048 refuses; the last -std on the command line counts.
#: Unique symbols would be shared by all blocks that one process opens.
_CXXFLAGS = "-std=c++17 -fno-gnu-unique"


def translate_block(component: Component, name: str, folder: Path) -> Path:
    """Translate a PyMTL3 component that is not elaborated yet to SystemVerilog.

    Parameters
    ----------
    component : the block.
    name : name of its Verilog module. A double underscore in it is not possible: Verilator escapes it.
    folder : where the file goes; it is made if it does not exist.

    Returns
    -------
    Path of `<name>.sv` in the folder.

    Raises
    ------
    ValueError
        The name is not a Verilog identifier or has a double underscore.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or "__" in name:
        raise ValueError(
            f"The module name '{name}' must be an identifier without a double underscore, which Verilator "
            "would escape in the names of its files."
        )
    folder.mkdir(parents=True, exist_ok=True)
    component.set_metadata(VerilogTranslationPass.enable, True)
    component.set_metadata(VerilogTranslationPass.explicit_module_name, name)
    component.elaborate()
    with _working_in(folder):
        component.apply(VerilogTranslationPass())
    # The translation pass adds "__pickled.v" to the module's name; pyverilator takes the file's name for
    # the module's.
    path = folder / f"{name}.sv"
    os.replace(folder / f"{name}__pickled.v", path)
    return path


def open_block(verilog: Path, folder: Path) -> Any:
    """Compile a Verilog file with pyverilator and start a simulation of its top module.

    All inputs start at 0. Writing an input evaluates the block at once; `simulation.clock.tick()` gives a
    rising and a falling edge of `clk`.

    Parameters
    ----------
    verilog : the file; its name without the suffix is the top module's name.
    folder : where to build. Use a fresh one each time: a library that is already loaded is not replaced.

    Returns
    -------
    A `pyverilator.PyVerilator`, whose `io.<port>` reads and writes a pin.

    Raises
    ------
    ToolError
        Verilator is missing.
    BuildError
        The file does not compile, or Verilator gave a warning in `FATAL_WARNINGS`.
    ValueError
        The top module has list ports, which pyverilator leaves out without a word.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    top = verilog.stem
    source = folder / f"{top}.sv"
    if verilog.absolute() != source:
        shutil.copyfile(verilog, source)
    objects = folder / "objects"
    options: dict[str, Any] = {
        "build_dir": str(objects),
        "quiet": True,
        "args": ["--top-module", top, *(f"-Werror-{name}" for name in FATAL_WARNINGS)],
        "cargs": _CXXFLAGS,
    }
    try:
        with activated(find_verilator()):
            pyverilator.PyVerilator.build(str(source), gen_only=True, **options)
            _refuse_list_ports(top, objects / f"V{top}.h")
            os.environ["MAKEFLAGS"] = f"-j2 {os.environ['MAKEFLAGS']} OPT_FAST=-O0 OPT_SLOW=-O0 OPT_GLOBAL=-O0"
            return pyverilator.PyVerilator.build(str(source), **options)
    except subprocess.CalledProcessError as error:
        # Verilator's own output went to the terminal; make's was kept.
        log = (error.stderr or b"").decode(errors="replace").splitlines()
        raise BuildError(
            f"pyverilator could not build the module '{top}' (exit status {error.returncode}).\n" + "\n".join(log[-30:])
        ) from error


def translate_and_open(component: Component, name: str, folder: Path) -> Any:
    """Translate a component with `translate_block` and open it with `open_block` in the same folder."""
    return open_block(translate_block(component, name, folder), folder)


def _refuse_list_ports(top: str, header: Path) -> None:
    list_ports = re.findall(r"^\s*VlUnpacked<.*>\s*&(\w+);", header.read_text(), flags=re.MULTILINE)
    if list_ports:
        raise ValueError(
            f"The module '{top}' has list ports ({', '.join(list_ports)}), which pyverilator cannot drive; "
            "wrap it in a component with single ports."
        )


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
