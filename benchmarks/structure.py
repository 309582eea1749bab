"""How is the package laid out: its rooms, the levels they stand on, and the imports between them?

A room is a module or package directly inside `tuner`. An arrow is a pair of rooms of which the
first imports the second, wherever the import stands. A room stands one level above the highest
room that it imports; rooms that import each other stand on one level and are printed as a cycle.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import grimp

PACKAGE = Path(__file__).parents[1] / "tuner"


def arrows(graph: grimp.ImportGraph) -> dict[str, set[str]]:
    """Return, for each room, the rooms that it imports."""
    found: dict[str, set[str]] = {_room(module): set() for module in graph.modules}
    for module in graph.modules:
        found[_room(module)] |= {
            _room(imported) for imported in graph.find_modules_directly_imported_by(module)
        } - {_room(module)}
    return found


def _room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def below(edges: Mapping[str, set[str]], room: str) -> set[str]:
    """Return every room that `room` imports, directly or through others."""
    seen: set[str] = set()
    waiting = [room]
    while waiting:
        new = edges[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def levels(edges: Mapping[str, set[str]]) -> dict[str, int]:
    """Return the level of each room; the lowest is 1."""
    under = {room: below(edges, room) for room in edges}

    def level(room: str) -> int:
        return 1 + max(
            (level(other) for other in under[room] if room not in under[other]), default=0
        )

    return {room: level(room) for room in edges}


def lines(room: str) -> int:
    """Return how many lines of Python a room has."""
    name = room.partition(".")[2]
    if not name:
        return len((PACKAGE / "__init__.py").read_text().splitlines())
    files = (
        (PACKAGE / name).rglob("*.py") if (PACKAGE / name).is_dir() else [PACKAGE / f"{name}.py"]
    )
    return sum(len(file.read_text().splitlines()) for file in files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--arrows", action="store_true", help="list the rooms that each one imports"
    )
    options = parser.parse_args()

    edges = arrows(grimp.build_graph("tuner", cache_dir=None))
    floors: dict[int, list[str]] = defaultdict(list)
    for room, level in levels(edges).items():
        floors[level].append(room)
    for level in sorted(floors, reverse=True):
        for room in sorted(floors[level]):
            print(f"{level:2}  {room:24} {lines(room):6,} lines  {len(edges[room]):3} arrows")
            if options.arrows:
                print("".join(f"        -> {other}\n" for other in sorted(edges[room])), end="")
    loose = [room for room in edges if not (PACKAGE / room.partition(".")[2]).is_dir()]
    print(
        f"{len(edges)} rooms ({len(loose)} of them single modules), {max(floors)} levels, "
        f"{sum(map(len, edges.values()))} arrows, {sum(map(lines, edges)):,} lines"
    )
    cycles = {
        frozenset({room} | {one for one in below(edges, room) if room in below(edges, one)})
        for room in edges
        if room in below(edges, room)
    }
    for cycle in cycles:
        print(f"cycle: {', '.join(sorted(cycle))}")


if __name__ == "__main__":
    main()
