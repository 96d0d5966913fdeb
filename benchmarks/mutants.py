"""Change single lines of the package, one at a time, and see whether the tests notice (`mutmut`).

    python -m benchmarks.mutants [MODULE ...] > benchmarks/results/mutants-HARDWARE-DATE.md

[tool.mutmut] in pyproject.toml names the modules and the tests; a mutant is tested by those of the
tests that call the changed function. Of each module a fixed sample of the mutants is drawn. Mutants
that only reword a message are not drawn. Printed are a table and every mutant that survived.
"""

from __future__ import annotations

import ast
import random
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files
from mutmut.utils.format_utils import get_mutant_name, mangled_name_from_mutant_name

from benchmarks.machine import describe_machine, find_version
from benchmarks.report import make_parser
from iqa_ray.progress import log

Counts = tuple[int, int, int]  # mutants, those tested, those killed

SEED = 1
SAMPLE_SIZE = 20
NUM_AT_ONCE = 1  # a test that fails for want of a processor would count as a kill
# a mutant that never ends, or that ends Python, does not go unnoticed
NOTICED = {"killed", "timeout", "segfault"}


class _Blank(ast.NodeTransformer):
    """Empties names of functions and texts with spaces, which are messages."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.name = ""
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant("") if isinstance(node.value, str) and " " in node.value else node


def list_mutants(path: Path) -> list[str]:
    """The names of a module's mutants, without those that only reword a message."""
    mutated = mutate_file_contents(str(path), path.read_text(encoding="utf-8"))
    functions = {
        node.name: ast.dump(_Blank().visit(node))
        for node in list(ast.walk(ast.parse(mutated.code)))
        if isinstance(node, ast.FunctionDef)
    }
    return [
        get_mutant_name(path, name)
        for name in mutated.mutant_names
        if functions[name] != functions[f"{mangled_name_from_mutant_name(name)}__mutmut_orig"]
    ]


def draw_sample(path: Path, names: list[str]) -> list[str]:
    """At most `SAMPLE_SIZE` of the mutants: the same ones as long as the module stays the same."""
    return sorted(random.Random(f"{SEED} {path}").sample(names, min(SAMPLE_SIZE, len(names))))


def run_mutmut(names: Iterable[str]) -> None:
    """Let `mutmut` make its copy of the sources anew and run the tests on each of the mutants."""
    shutil.rmtree("mutants", ignore_errors=True)
    command = [str(Path(sys.executable).parent / "mutmut"), "run"]
    subprocess.run(
        [*command, f"--max-children={NUM_AT_ONCE}", *names], check=True, stdout=sys.stderr
    )


def read_statuses(path: Path, names: Iterable[str]) -> dict[str, str]:
    """What became of each mutant, in mutmut's words."""
    data = SourceFileMutationData(path=path)
    data.load()
    return {name: status_by_exit_code[data.exit_code_by_key[name]] for name in names}


def describe_change(name: str, path: Path) -> str:
    """The function, and the line as it was and as it became."""
    lines = get_diff_for_mutant(name, path=path).splitlines()
    changed = [
        line[0] + " " + line[1:].strip()
        for line in lines
        if line[:1] in {"-", "+"} and line[:3] not in {"---", "+++"}
    ]
    return "\n".join([f"# {name}", *changed])


def add_up(counts: Iterable[Counts]) -> Counts:
    """The counts of several modules together."""
    num_mutants, num_tested, num_killed = map(sum, zip(*counts, strict=True))
    return num_mutants, num_tested, num_killed


def print_table(title: str, rows: Mapping[str, Counts]) -> None:
    print(f"\n| {title} | mutants | tested | killed | share |\n|---|---|---|---|---|")
    for name, (num_mutants, num_tested, num_killed) in rows.items():
        share = f"{num_killed / num_tested:.0%}"
        print(f"| {name} | {num_mutants} | {num_tested} | {num_killed} | {share} |")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("modules", nargs="*", help="such as iqa_ray/storage/lock.py (default: all)")
    wanted = {Path(module) for module in parser.parse_args().modules}
    paths = [path for path in sorted(walk_mutatable_files()) if not wanted or path in wanted]
    mutants = {path: list_mutants(path) for path in paths}
    samples = {path: draw_sample(path, names) for path, names in mutants.items()}
    log(f"{sum(map(len, samples.values()))} mutants of {len(paths)} modules")
    run_mutmut(name for names in samples.values() for name in names)

    counts: dict[Path, Counts] = {}
    survivors: list[str] = []
    for path, names in samples.items():
        statuses = read_statuses(path, names)
        survived = {name: status for name, status in statuses.items() if status not in NOTICED}
        counts[path] = len(mutants[path]), len(names), len(names) - len(survived)
        survivors += [
            f"{describe_change(name, path)}   ({status})" for name, status in survived.items()
        ]
    machine = describe_machine()
    print(
        f"# Mutants\n\n{machine['date']}, {machine['cores']} cores ({machine['processor']}), "
        f"Python {machine['python']}, mutmut {find_version('mutmut')}; `make mutants`, at most "
        f"{SAMPLE_SIZE} of a module's mutants, seed {SEED}."
    )
    rooms: dict[str, list[Counts]] = {}
    for path, found in counts.items():
        rooms.setdefault(path.parent.name, []).append(found)
    print_table("room", {room: add_up(found) for room, found in rooms.items()})
    print_table("module", {f"`{path}`": found for path, found in counts.items()})
    print("\n## Survivors\n\n```diff\n" + "\n\n".join(survivors) + "\n```")


if __name__ == "__main__":
    main()
