"""No two modules import each other, by whatever way round: not even inside functions or for types alone."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("cacovid", "actors", "learner", "serving", "cluster", "benchmarks")


def modules() -> dict[str, Path]:
    """Every module of the repository by its dotted name; a package is its ``__init__``."""
    found = [path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__"): ROOT / path for path in found}


def imported(source: str) -> Iterator[str]:
    """What ``source`` imports, by dotted names; of ``from a import b`` both ``a`` and ``a.b``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from names
            if not all(name in KNOWN for name in names):
                yield node.module


KNOWN = modules()


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {name: {each for each in imported(path.read_text()) if each in KNOWN} for name, path in KNOWN.items()}
    assert graph["cacovid.policy.build"] >= {"cacovid.policy.base", "cacovid.config"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"circle of imports: {' -> '.join(error.args[1])}") from None
