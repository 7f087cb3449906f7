"""The laws of the house: who may import whom, where decorators and readers live, what lies at the top."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("prompts", "warmstart", "reward_model", "sample", "score", "advantage", "update", "evaluate")
TOP = {"pyproject.toml", "README.md", "flows", "stages", "tests", "artifacts", "configs"}


def sources(folder: str) -> dict[str, ast.Module]:
    """The syntax tree of each module below a folder, by its path from the top."""
    return {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / folder).rglob("*.py"))
    }


def module_of(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a module imports anywhere, also inside functions; `from a import b` gives `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def trespasses(path: str, tree: ast.AST) -> list[str]:
    """Imports by which a module of `stages` reaches where it may not."""
    home = path.split("/")[1]
    allowed = {"contract": {"contract"}, "model": {"model", "contract"}}.get(home, {home, "model", "contract"})
    return [
        f"{path} imports {name}"
        for name in imported(tree)
        if name.split(".")[0] == "flows" or (name.split(".")[0] == "stages" and name.split(".")[1] not in allowed)
    ]


def decorators(tree: ast.AST) -> Iterator[str]:
    """The last name of each decorator, called or not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for decorator in node.decorator_list:
                target = decorator.func if isinstance(decorator, ast.Call) else decorator
                yield ast.unparse(target).rsplit(".", maxsplit=1)[-1]


def loaded_by(modules: Iterable[str]) -> set[str]:
    """The top-level packages in memory after a fresh interpreter has imported these modules."""
    code = (
        "import importlib, json, sys\n"
        f"for name in {sorted(modules)!r}:\n    importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_stages_know_nothing_of_prefect() -> None:
    modules = {module_of(path) for path in sources("stages")}
    assert {f"stages.{room}.stage" for room in ROOMS} <= modules
    loaded = loaded_by(modules)
    assert {"stages", "torch", "polars"} <= loaded
    assert not loaded & {"prefect", "flows"}


def test_advantages_and_configurations_need_neither_torch_nor_transformers() -> None:
    modules = {
        module_of(path) for path in sources("stages") if path.endswith("/config.py") or "/advantage/" in path
    } | {"flows.config.loading"}
    assert {f"stages.{room}.config" for room in ROOMS} | {"stages.advantage.stage"} <= modules
    loaded = loaded_by(modules)
    assert {"stages", "flows", "polars", "pydantic"} <= loaded
    assert not loaded & {"torch", "vllm", "transformers", "datasets", "reasoning_gym", "prefect"}


def test_imports_go_downward_only_and_rooms_never_import_each_other() -> None:
    modules = sources("stages")
    assert {path.split("/")[1] for path in modules if path.count("/") > 1} == {*ROOMS, "model", "contract"}
    assert [line for path, tree in modules.items() for line in trespasses(path, tree)] == []


def test_the_law_of_imports_sees_what_breaks_it() -> None:
    def told(path: str, line: str) -> int:
        return len(trespasses(path, ast.parse(line)))

    for line in ("import stages.score.verdict", "from stages.score import verdict", "from stages import score"):
        assert told("stages/sample/token_sampling.py", line) == 1
        assert told("stages/sample/token_sampling.py", f"def f():\n    {line}") == 1
        assert told("stages/model/load.py", line) == told("stages/contract/paths.py", line) == 1
        assert told("stages/score/stage.py", line) == 0
    assert told("stages/sample/token_sampling.py", "from flows.config.schema import RunConfig") == 1
    assert told("stages/contract/paths.py", "from stages.model import load") == 1
    assert told("stages/sample/token_sampling.py", "from stages.model import load") == 0
    assert told("stages/sample/token_sampling.py", "from stagesets import score") == 0


def test_heavy_libraries_are_imported_where_they_are_at_home() -> None:
    homes = {"vllm": {"stages/sample/vllm_worker.py"}, "peft": {"stages/model/adapter.py"}}
    modules = sources("flows") | sources("stages")
    for library, home in homes.items():
        importing = {
            path for path, tree in modules.items() if library in {name.split(".")[0] for name in imported(tree)}
        }
        assert importing == home, library


def test_prefect_tasks_are_made_in_one_file() -> None:
    modules = sources("flows") | sources("stages")
    assert [path for path, tree in modules.items() if "task" in decorators(tree)] == ["flows/orchestration/tasks.py"]
    importing = [path for path, tree in modules.items() if {"prefect.task", "prefect.tasks.task"} & {*imported(tree)}]
    assert importing == ["flows/orchestration/tasks.py"]


def test_flows_are_made_in_flows() -> None:
    assert [path for path, tree in sources("stages").items() if "flow" in decorators(tree)] == []
    assert [path for path, tree in sources("flows").items() if "flow" in decorators(tree)] != []


def test_decorators_are_seen_in_each_of_their_forms() -> None:
    plain, called = "@task\ndef a(): ...\n", "@prefect.task(name='b')\nasync def b(): ...\n"
    inside = "@flow()\ndef c():\n    @task\n    def d(): ..."
    assert sorted(decorators(ast.parse(plain + called + inside))) == ["flow", "task", "task", "task"]


def test_yaml_is_read_in_one_file() -> None:
    modules = sources("flows") | sources("stages")
    assert [path for path, tree in modules.items() if "yaml" in {name.split(".")[0] for name in imported(tree)}] == [
        "flows/config/loading.py"
    ]


TRAINING = ("model", "update", "warmstart", "reward_model")
"""Rooms of `stages` in which gradients flow."""


def indexings_by_tensor(path: str, tree: ast.AST) -> list[str]:
    """Reads of `x[index]` where the index, or a part of it, is a tensor, as the dimensions in its name tell.

    The gradient of such an index is summed by several threads in the order in which they come (`index_put_` with
    `accumulate`); that of `index_select` and `gather` has one order.
    """
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            names = [part.attr if isinstance(part, ast.Attribute) else getattr(part, "id", "") for part in parts]
            if any(re.search(r"_[A-Z][A-Z0-9]*$", name) for name in names):
                found.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
    return found


def test_nothing_is_indexed_by_a_tensor_where_gradients_flow() -> None:
    modules = {path: tree for path, tree in sources("stages").items() if path.split("/")[1] in TRAINING}
    assert {path.split("/")[1] for path in modules} == {*TRAINING}
    assert [line for path, tree in modules.items() for line in indexings_by_tensor(path, tree)] == []


def test_the_law_of_indexing_sees_what_breaks_it() -> None:
    def told(line: str) -> int:
        return len(indexings_by_tensor("a.py", ast.parse(line)))

    assert told("return_ = out_BSX.flatten(0, 1)[batch.places_N]") == 1
    assert told("x = torch.cat([firsts_UX, out_BSX])[places_N]") == told("x = states_NH[rows_N, 3]") == 1
    assert told("x = states_NH[at]; y = out_UPX[:, -1]; z = targets_N[at, None]; names['a_b']") == 0
    assert told("x_NH[places_N] = 0") == 0


def test_there_is_no_drawer_for_odds_and_ends() -> None:
    names = {part for path in sources("flows") | sources("stages") for part in Path(path).with_suffix("").parts}
    assert not names & {"utils", "util", "helpers", "helper", "common", "misc"}


def test_the_top_of_the_repository_holds_nothing_else() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert {"pyproject.toml", "flows", "stages", "tests", "configs"} <= top
    assert {name for name in top if not name.startswith(".")} - TOP == set()
