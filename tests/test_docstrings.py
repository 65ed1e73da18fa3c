"""Docstrings of public functions state array shapes and the errors that the function raises.

``python tests/test_docstrings.py`` lists the violations.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "brain_dist"
ARRAY = re.compile(r"\b(ndarray|NDArray|Tensor)\b")
SHAPE = re.compile(r"\[[^\]]+\]|\bscalar\b")  # such as [N, 3, H, W]
ERRORS = {"UserError", "Fault"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def public_functions(tree: ast.Module | ast.ClassDef) -> Iterator[Function]:
    """Functions of a module and methods of its public classes whose names have no leading underscore."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node)
        elif isinstance(node, Function) and not node.name.startswith("_"):
            yield node


def annotations(function: Function) -> str:
    """The annotations of a function's parameters and of its result, joined."""
    arguments = function.args
    parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    nodes = [*(parameter.annotation for parameter in parameters if parameter), function.returns]
    return " ".join(ast.unparse(node) for node in nodes if node)


def raised(function: Function) -> set[str]:
    """Names of the errors in :data:`ERRORS` that a function's own body raises; nested functions are not searched."""
    names = set()
    pending: list[ast.AST] = list(function.body)
    while pending:
        node = pending.pop()
        if isinstance(node, Function | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            names.add(node.exc.func.id)
        pending.extend(ast.iter_child_nodes(node))
    return names & ERRORS


def violations(source: str) -> list[tuple[int, str]]:
    """Line number and message for each public function whose docstring lacks a shape or an error."""
    problems = []
    for function in public_functions(ast.parse(source)):
        docstring = ast.get_docstring(function) or ""
        if ARRAY.search(annotations(function)) and not SHAPE.search(docstring):
            problems.append((function.lineno, f"{function.name}: no shape such as [N, 3, H, W]"))
        for name in sorted(raised(function)):
            if name not in docstring:
                problems.append((function.lineno, f"{function.name}: raises {name}, which the docstring does not name"))
    return problems


def package_violations() -> list[str]:
    """Violations in brain_dist as ``path:line: message``."""
    return [
        f"{path.relative_to(PACKAGE.parent)}:{line}: {message}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, message in violations(path.read_text())
    ]


def test_public_docstrings_state_shapes_and_errors() -> None:
    assert package_violations() == []


def test_missing_shape_and_error_are_reported() -> None:
    source = '''
def scale(image: np.ndarray) -> np.ndarray:
    """Scale an image.

    Raises:
        Fault: the image is empty.
    """
    if not image.size:
        raise UserError("empty")
    raise Fault("empty")

def documented(image: Tensor) -> None:
    """Show an image [3, H, W]."""

def _private(image: Tensor) -> None: ...
'''
    assert [message for _, message in violations(source)] == [
        "scale: no shape such as [N, 3, H, W]",
        "scale: raises UserError, which the docstring does not name",
    ]


if __name__ == "__main__":
    print("\n".join(package_violations()))
