"""Cells set parameters, call the package and show: they decide, repeat and define nothing."""

from __future__ import annotations

import ast

import nbformat
import pytest

from tests.notebooks.running import NOTEBOOKS

LOGIC = (ast.stmt, ast.comprehension, ast.Lambda, ast.IfExp, ast.BinOp, ast.BoolOp, ast.Compare, ast.NamedExpr)
PLAIN = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.Expr, ast.With)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_cells_hold_no_logic(path):
    cells = nbformat.read(path, as_version=4).cells
    nodes = [node for cell in cells if cell.cell_type == "code" for node in ast.walk(ast.parse(cell.source))]
    logic = [node for node in nodes if isinstance(node, LOGIC) and not isinstance(node, PLAIN)]
    assert [ast.unparse(node) for node in logic] == []
