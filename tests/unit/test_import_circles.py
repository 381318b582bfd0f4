"""No circles between files."""

import ast
from collections.abc import Iterator
from pathlib import Path

from settings import ROOT

ROOMS = ("cli", "launcher", "webapp", "services", "tasks", "store", "engines", "testing", "bench")


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imports_of(path: Path, modules: set[str]) -> Iterator[str]:
    """The project's modules that a file imports, also inside functions and for types only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                full = f"{node.module}.{name.name}"
                yield full if full in modules else node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def graph(root: Path) -> dict[str, set[str]]:
    paths = [path for room in ROOMS for path in (root / room).rglob("*.py") if not path.stem.endswith("_grpc")]
    modules = {".".join(p.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}
    return {
        name: {found for found in imports_of(path, set(modules)) if found in modules and found != name}
        for name, path in modules.items()
    }


def circle_in(edges: dict[str, set[str]]) -> list[str]:
    """Return a circle, or nothing."""
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module in done:
            return []
        for found in sorted(edges[module]):
            if circle := visit(found, [*trail, module]):
                return circle
        done.add(module)
        return []

    return next((circle for module in sorted(edges) if (circle := visit(module, []))), [])


def test_there_is_none() -> None:
    assert circle_in(graph(ROOT)) == []


def test_one_would_be_found() -> None:
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c", "a"]


def test_tests_and_bench_do_not_import_each_other() -> None:
    found = [
        (str(path), name)
        for room, other in (("tests", "bench"), ("bench", "tests"), ("testing", "tests"), ("testing", "bench"))
        for path in (ROOT / room).rglob("*.py")
        for name in imports_of(path, set())
        if name.split(".")[0] == other
    ]
    assert found == []
