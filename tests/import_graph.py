"""Imports between the packages of brain_dist, read from the source.

``make graph`` prints each package, its purpose, and the packages that it imports. The table in CONTRIBUTING.md gives
the order of the packages; a package may only import packages above it in that table.
"""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "brain_dist"
BASE = "errors"  # brain_dist.errors, which every module may import
VERBS = "verbs"  # the modules directly in brain_dist, which no module may import


def packages() -> dict[str, str]:
    """Purpose of each package, in the order of the table in CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    return dict(re.findall(r"^\| `brain_dist/(\w+)/` \| ([^|]+?) \|", text, flags=re.M))


def module_name(path: Path) -> str:
    """Name of the module in a file, such as ``brain_dist.store.index``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(tree: ast.Module, modules: set[str]) -> set[str]:
    """Names that a module imports at its top, inside functions, or for type checkers."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: relative import"
            for alias in node.names:
                # `from package import module` imports a module, `from module import function` does not
                longer = f"{node.module}.{alias.name}"
                names.add(longer if longer in modules else str(node.module))
    return names


def imports() -> dict[str, set[str]]:
    """Modules of brain_dist that each module of brain_dist imports."""
    files = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
    modules = set(files)
    return {
        name: (imported_names(ast.parse(path.read_text()), modules) & modules) - {name} for name, path in files.items()
    }


def package_of(module: str) -> str:
    """Package of a module; ``verbs`` or ``errors`` for a module directly in brain_dist."""
    parts = module.split(".")
    if len(parts) > 1 and (PACKAGE / parts[1]).is_dir():
        return parts[1]
    return BASE if module in ("brain_dist", "brain_dist.errors") else VERBS


def package_imports() -> dict[str, set[str]]:
    """Packages that each package imports."""
    graph: dict[str, set[str]] = {}
    for module, targets in imports().items():
        package = package_of(module)
        graph.setdefault(package, set()).update(package_of(target) for target in targets)
        graph[package].discard(package)
    return graph


def violations() -> list[str]:
    """One line for each import against the order of the packages, and for a cycle between modules."""
    order = [BASE, *packages(), VERBS]
    graph = imports()
    lines = set()
    for module, targets in graph.items():
        for target in targets:
            package, imported = package_of(module), package_of(target)
            unknown = {package, imported} - set(order)
            if unknown:
                lines.add(f"{', '.join(sorted(unknown))} is missing in CONTRIBUTING.md's table of packages")
            elif order.index(imported) > order.index(package):
                lines.add(f"{module} imports {target}, whose package is below its own in CONTRIBUTING.md")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        lines.add(f"import cycle: {' → '.join(error.args[1])}")
    return sorted(lines)


def main() -> int:
    """Print the graph and the violations; exit code 1 if there are any."""
    graph = package_imports()
    purposes = {BASE: "how a command fails and ends", **packages(), VERBS: "one module per verb"}
    order = list(purposes)
    for name, purpose in purposes.items():
        imported = sorted(graph.get(name, ()), key=order.index)
        print(f"{name:12} {purpose}\n{'':12} imports {', '.join(imported) or '–'}")
    problems = violations()
    print("\n".join(problems) if problems else "no import violates the order")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
