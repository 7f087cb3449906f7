"""The laws of the house: who may import whom, where decorators and readers live, what lies at the top."""

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("prompts", "warmstart", "reward_model", "sample", "score", "advantage", "update", "evaluate")
RANKS = {
    "config": 1,
    "runs": 2,
    "inspection": 3,
    "execution": 3,
    "orchestration": 4,
    "flow": 5,
    "serving": 6,
    "commands": 7,
    "cli": 8,
}
"""The ladder of `flows`: each place imports those of lower ranks, and itself. A `flow` is a file of `flows/` itself."""
FLOWS = {"train", "stage", "evaluate", "nightly", "fork", "rescore", "reward_model"}
KNOW_PREFECT = ("orchestration", "flow", "serving")
LOOKS_UP_SECRETS = "flows/execution/secrets.py"
"""The one module below the flows that asks Prefect: for a block, where a reward names one."""
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
    } | {module_of(path) for path in sources("flows/config")}
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


def place_in_flows(name: str) -> str | None:
    """Where on the ladder a module of `flows` stands, or what is imported from it; None for all else."""
    top, _, rest = name.partition(".")
    own = rest.split(".")[0]
    if top != "flows":
        return None
    return own if own in RANKS else "flow"


def steps_up(path: str, tree: ast.AST) -> list[str]:
    """Imports by which a module of `flows` reaches what stands above it, or beside it."""
    home = place_in_flows(module_of(path))
    assert home is not None, path
    found = []
    for name in imported(tree):
        place = place_in_flows(name)
        if place is not None and place != home and RANKS[place] >= RANKS[home]:
            found.append(f"{path} imports {name}")
    return found


def test_imports_in_flows_go_down_the_ladder() -> None:
    modules = sources("flows")
    packages = {path.split("/")[1] for path in modules if path.count("/") > 1}
    files = {path.split("/")[1] for path in modules if path.count("/") == 1}
    assert packages == RANKS.keys() - {"flow", "cli"}
    assert files == {"__init__.py", "cli.py", *(f"{name}.py" for name in FLOWS)}
    assert [line for path, tree in modules.items() for line in steps_up(path, tree)] == []


def test_the_law_of_the_ladder_sees_what_breaks_it() -> None:
    def told(path: str, line: str) -> int:
        told_inside = len(steps_up(path, ast.parse(f"def f():\n    {line}")))
        assert told_inside == len(steps_up(path, ast.parse(line)))
        return told_inside

    for line in ("import flows.runs.access", "from flows.runs import access", "from flows.runs.access import open_run"):
        assert told("flows/config/schema.py", line) == 1
        assert told("flows/runs/staleness.py", line) == told("flows/train.py", line) == told("flows/cli.py", line) == 0
    assert told("flows/inspection/compare.py", "from flows.execution.replay import replay") == 1
    assert told("flows/execution/replay.py", "from flows.inspection.report import report") == 1
    assert told("flows/orchestration/tasks.py", "from flows.execution.run_stage import perform") == 0
    assert told("flows/orchestration/night_run.py", "from flows.train import train") == 1
    assert told("flows/orchestration/night_run.py", "from flows import train") == 1
    assert told("flows/fork.py", "from flows.train import train") == 0
    assert told("flows/fork.py", "from flows.serving.deployments import offers") == 1
    assert told("flows/serving/deployments.py", "from flows.train import train") == 0
    assert told("flows/serving/serve.py", "from flows.commands.options import say") == 1
    assert told("flows/commands/reading.py", "from flows.cli import app") == 1
    assert told("flows/runs/access.py", "from stages.contract.paths import RunPaths") == 0


def cycles(modules: dict[str, ast.Module]) -> list[str]:
    """A cycle of imports among modules, those inside functions included; empty where there is none."""
    graph: dict[str, set[str]] = {module_of(path): set() for path in modules}
    for path, tree in modules.items():
        for name in imported(tree):
            graph[module_of(path)] |= {name, name.rpartition(".")[0]} & graph.keys()
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_of_flows_import_each_other_in_a_cycle() -> None:
    assert cycles(sources("flows")) == []


def test_the_law_of_cycles_sees_what_breaks_it() -> None:
    def tree(line: str) -> ast.Module:
        return ast.parse(f"def f():\n    {line}")

    there, back = tree("from flows.runs import access"), tree("from flows.runs.history import History")
    assert {"flows.runs.access", "flows.runs.history"} == set(
        cycles({"flows/runs/history.py": there, "flows/runs/access.py": back})
    )
    assert cycles({"flows/runs/history.py": tree("import os"), "flows/runs/access.py": back}) == []


def knowing_prefect(modules: dict[str, ast.Module]) -> set[str]:
    """Modules of `flows` that import Prefect and stand where nothing knows of it."""
    return {
        path
        for path, tree in modules.items()
        if place_in_flows(module_of(path)) not in KNOW_PREFECT
        and "prefect" in {name.split(".")[0] for name in imported(tree)}
    }


def test_prefect_is_known_to_the_flows_and_to_what_they_share_and_serves_them() -> None:
    assert knowing_prefect(sources("flows")) == {LOOKS_UP_SECRETS}


def test_the_law_of_prefect_sees_what_breaks_it() -> None:
    for line in ("import prefect", "from prefect.runtime import flow_run", "def f():\n    import prefect.states"):
        tree = ast.parse(line)
        for path in (
            "flows/runs/access.py",
            "flows/execution/run_stage.py",
            "flows/commands/serving.py",
            "flows/cli.py",
        ):
            assert knowing_prefect({path: tree}) == {path}
        for path in ("flows/train.py", "flows/orchestration/tasks.py", "flows/serving/worker.py"):
            assert knowing_prefect({path: tree}) == set()
    assert knowing_prefect({"flows/runs/access.py": ast.parse("from flows.serving import prefect_server")}) == set()


def ill_introduced(path: str, text: str) -> list[str]:
    """What is wrong with a package's `__init__.py`: it is a docstring of three to eight lines, and nothing else."""
    body = ast.parse(text).body
    told = ast.get_docstring(ast.parse(text), clean=False)
    if told is None or len(body) != 1:
        return [f"{path} is to be a docstring, and nothing else"]
    lines = len(told.splitlines())
    return [] if 3 <= lines <= 8 else [f"{path}: {lines} lines; three to eight are wanted"]


def test_packages_of_flows_are_introduced_and_export_nothing() -> None:
    paths = sorted((ROOT / "flows").rglob("__init__.py"))
    assert len(paths) == len(RANKS) - 1
    assert [line for path in paths for line in ill_introduced(str(path), path.read_text(encoding="utf-8"))] == []


def test_the_law_of_introductions_sees_what_breaks_it() -> None:
    good = '"""Holds this.\n\nMay import that.\n"""\n'
    assert ill_introduced("a", good) == []
    for bad in (
        "",
        '"""Holds this."""\n',
        good + "from flows.runs.access import open_run\n",
        good.replace("this", "\n" * 9),
    ):
        assert len(ill_introduced("a", bad)) == 1


def test_heavy_libraries_are_imported_where_they_are_at_home() -> None:
    homes = {"vllm": {"stages/sample/vllm_worker.py"}, "peft": {"stages/model/adapter.py"}}
    modules = sources("flows") | sources("stages")
    for library, home in homes.items():
        importing = {
            path for path, tree in modules.items() if library in {name.split(".")[0] for name in imported(tree)}
        }
        assert importing == home, library


def making_tasks(modules: dict[str, ast.Module]) -> list[str]:
    """Modules that make tasks of Prefect, or import what makes them."""
    return [
        path
        for path, tree in modules.items()
        if "task" in decorators(tree) or {"prefect.task", "prefect.tasks.task"} & {*imported(tree)}
    ]


def test_prefect_tasks_are_made_in_one_file() -> None:
    assert making_tasks(sources("flows") | sources("stages")) == ["flows/orchestration/tasks.py"]


def test_the_law_of_tasks_sees_what_breaks_it() -> None:
    for line in ("from prefect import task", "import prefect\n@prefect.task\ndef f(): ...", "@task()\ndef f(): ..."):
        assert making_tasks({"flows/train.py": ast.parse(line)}) == ["flows/train.py"]
    assert making_tasks({"flows/train.py": ast.parse("from flows.orchestration.tasks import run_stage")}) == []


def flows_made(modules: dict[str, ast.Module]) -> Counter[str]:
    """How many flows of Prefect each module makes."""
    return Counter({path: made for path, tree in modules.items() if (made := [*decorators(tree)].count("flow"))})


def test_each_flow_is_made_in_a_file_of_its_own() -> None:
    assert flows_made(sources("flows") | sources("stages")) == {f"flows/{name}.py": 1 for name in FLOWS}


def test_the_law_of_flows_sees_what_breaks_it() -> None:
    one = "@flow(name='a')\n@in_one_sentence\ndef a(): ...\n"
    trees = {"flows/train.py": ast.parse(one + one), "flows/orchestration/tasks.py": ast.parse(one)}
    assert flows_made(trees) == {"flows/train.py": 2, "flows/orchestration/tasks.py": 1}


def test_decorators_are_seen_in_each_of_their_forms() -> None:
    plain, called = "@task\ndef a(): ...\n", "@prefect.task(name='b')\nasync def b(): ...\n"
    inside = "@flow()\ndef c():\n    @task\n    def d(): ..."
    assert sorted(decorators(ast.parse(plain + called + inside))) == ["flow", "task", "task", "task"]


def reading_yaml(modules: dict[str, ast.Module]) -> list[str]:
    """Modules that import a reader of YAML."""
    return [path for path, tree in modules.items() if "yaml" in {name.split(".")[0] for name in imported(tree)}]


def test_yaml_is_read_in_one_file() -> None:
    assert reading_yaml(sources("flows") | sources("stages")) == ["flows/config/loading.py"]


def test_the_law_of_yaml_sees_what_breaks_it() -> None:
    for line in ("import yaml", "from yaml import safe_load", "def f():\n    import yaml"):
        assert reading_yaml({"flows/serving/notifications.py": ast.parse(line)}) == ["flows/serving/notifications.py"]
    assert reading_yaml({"flows/train.py": ast.parse("from flows.config.loading import read_yaml")}) == []


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


def unordered_groups(path: str, tree: ast.AST) -> list[str]:
    """Calls of polars' `group_by` without `maintain_order`: their sums, and their order, change from call to call."""
    return [
        f"{path}:{node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "group_by"
        and not any(keyword.arg == "maintain_order" for keyword in node.keywords)
    ]


def test_groups_of_rows_keep_their_order() -> None:
    modules = sources("flows") | sources("stages")
    assert [line for path, tree in modules.items() for line in unordered_groups(path, tree)] == []
    assert len(unordered_groups("a.py", ast.parse("t.group_by('a', *b).agg(c)"))) == 1
    assert unordered_groups("a.py", ast.parse("t.group_by('a', maintain_order=True).agg(c)")) == []


def test_there_is_no_drawer_for_odds_and_ends() -> None:
    names = {part for path in sources("flows") | sources("stages") for part in Path(path).with_suffix("").parts}
    assert not names & {"utils", "util", "helpers", "helper", "common", "misc"}


def test_the_top_of_the_repository_holds_nothing_else() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert {"pyproject.toml", "flows", "stages", "tests", "configs"} <= top
    assert {name for name in top if not name.startswith(".")} - TOP == set()
