"""The imports between the packages of brain_dist, read from the source.

``make graph`` prints them: each package, what it is for, and the packages that it imports. The order of the packages is
the order of the table in CONTRIBUTING.md; an import may only go to a package further up in that table.
"""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "brain_dist"
DOORS = "doors"  # the modules at the top of the package: one a verb


def packages() -> dict[str, str]:
    """Package → what it is for, lowest first, from the table in CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    return dict(re.findall(r"^\| `brain_dist/(\w+)/` \| ([^|]+?) \|", text, flags=re.M))


def module_name(path: Path) -> str:
    """``brain_dist.store.index`` of its file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports() -> dict[str, set[str]]:
    """Module → modules of brain_dist that it imports anywhere: at its top, inside a function, or for type checkers."""
    files = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        graph[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}: relative imports are not used here"
                # ``from package import module`` names a module; ``from module import name`` does not
                joined = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [longer if longer in files else str(node.module) for longer in joined]
            else:
                continue
            graph[name] |= {target for target in targets if target in files and target != name}
    return graph


def package_of(module: str) -> str:
    """The package that a module belongs to; a module directly in brain_dist is a door, ``errors`` lies below all."""
    parts = module.split(".")
    if len(parts) > 1 and (PACKAGE / parts[1]).is_dir():
        return parts[1]
    return "errors" if module in ("brain_dist", "brain_dist.errors") else DOORS


def package_imports() -> dict[str, set[str]]:
    """Package → packages that its modules import."""
    graph: dict[str, set[str]] = {}
    for module, targets in imports().items():
        own = package_of(module)
        graph.setdefault(own, set()).update(package_of(target) for target in targets)
        graph[own].discard(own)
    return graph


def upward() -> list[str]:
    """Every import that goes up or in a circle, one line each."""
    order = ["errors", *packages(), DOORS]
    graph = imports()
    wrong = []
    for module, targets in graph.items():
        for target in targets:
            own, other = package_of(module), package_of(target)
            missing = {own, other} - set(order)
            if missing:
                wrong.append(f"{', '.join(sorted(missing))} is not in CONTRIBUTING.md's table of packages")
            elif order.index(other) > order.index(own):
                wrong.append(f"{module} imports {target}, which lies above it")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        wrong.append(f"modules import each other: {' → '.join(error.args[1])}")
    return sorted(set(wrong))


def main() -> int:
    """Print the graph, lowest package first, and what is wrong with it."""
    graph = package_imports()
    for name, purpose in {"errors": "how a command fails and ends", **packages(), DOORS: "one module a verb"}.items():
        order = ["errors", *packages(), DOORS]
        print(f"{name:12} {purpose}\n{'':12} imports {', '.join(sorted(graph.get(name, ()), key=order.index)) or '–'}")
    wrong = upward()
    print("\n".join(wrong) if wrong else "no import goes upward")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
