"""A day in the UI: a run is started by the form, watched, changed, retried, approved and cancelled.

The trainings of the day overlap, as they do for people: what a step begins, a later one looks at.
"""

import json
from pathlib import Path
from typing import Any

import polars as pl

from tests.browser.ui import Ui
from tests.flows.serving.served import Served, eventually


def test_a_day_in_the_ui(ui: Ui, served: Served) -> None:
    small = a_training_of_two_iterations_is_started(ui)
    problems = one_without_its_data_fails_in_one_sentence_and_is_retried(ui, served)
    asking = train(ui, "asking")
    its_course_is_shown(ui, served, small)
    again = score_is_run_again_with_another_weight(ui)
    the_retried_one_is_whole(ui, served, problems)
    the_gate_waits_and_is_approved(ui, served, asking)
    what_is_stale_now_is_said(ui, served, again)
    the_approved_one_goes_on(ui, served, asking)
    a_running_one_is_cancelled(ui, served)
    what_is_not_there_is_named_and_nothing_changes(ui, served)
    a_policy_is_measured_with_more_completions(ui, served)


def a_training_of_two_iterations_is_started(ui: Ui) -> str:
    ui.open("/deployments")
    for deployment in ("train", "stage", "evaluate"):
        ui.sees(deployment)
    ui.shot("deployments")
    form = ui.form("train")
    form["config"].choose("configs/small.yaml")
    form["iterations"].fill(2)
    form["overrides"].opened()["update"].opened()["epochs"].fill(1)
    ui.shot("train-form", 1500)
    return ui.submit()


def one_without_its_data_fails_in_one_sentence_and_is_retried(ui: Ui, served: Served) -> str:
    problems = train(ui, "problems")
    served.await_state(problems, "FAILED")
    ui.run(problems, "Failed")
    ui.sees("prompts.source.path: nothing at data/problems.jsonl")
    assert ui.page.get_by_text("Traceback").count() == 0
    ui.shot("failed")
    assert not (served.folder / "artifacts" / "problems").exists()
    (served.folder / "data").mkdir()
    sums = [{"prompt": f"{a} + {b}", "answer": str(a + b)} for a in range(10) for b in range(10)]
    (served.folder / "data" / "problems.jsonl").write_text("\n".join(map(json.dumps, sums)))
    ui.confirm("Retry", "Retry")
    return problems


def its_course_is_shown(ui: Ui, served: Served, small: str) -> None:
    ui.run(small, "Completed")
    ui.sees("small · iteration 2")
    ui.shot("completed", keep=True)
    ui.tab("Artifacts")
    ui.page.get_by_text("small-page").first.click()
    ui.sees("Best")
    ui.shot("page", 1300, keep=True)
    assert manifest(served, "small/iterations/0002/update")["config"]["epochs"] == 1


def score_is_run_again_with_another_weight(ui: Ui) -> str:
    form = ui.form("stage")
    form["stage"].choose("score")
    form["run"].fill("small")
    form["iteration"].fill(1)
    second = form["overrides"].opened()["score"].opened()["rewards"].opened()["1"].opened()
    second["weight"].fill(0.5)
    ui.shot("stage-form", 1100, keep=True)
    return ui.submit()


def the_retried_one_is_whole(ui: Ui, served: Served, problems: str) -> None:
    served.await_state(problems, "COMPLETED")
    ui.run(problems, "Completed")
    assert manifest(served, "problems/iterations/0001/update")["iteration"] == 1


def the_gate_waits_and_is_approved(ui: Ui, served: Served, asking: str) -> None:
    served.await_state(asking, "PAUSED")
    ui.run(asking, "Suspended")
    assert not (served.folder / "artifacts/asking/iterations/0001/update").exists()
    answer = ui.confirm("Resume")
    ui.sees("waits for your decision")
    ui.shot("gate", 1100, keep=True)
    answer["Note"].fill("looks right")
    answer.press("Submit")


def what_is_stale_now_is_said(ui: Ui, served: Served, again: str) -> None:
    served.await_state(again, "COMPLETED")
    ui.run(again, "Completed")
    ui.sees("score · small/1")
    ui.tab("Details")
    ui.sees("score of iteration 1 is done; stale now")
    ui.page.get_by_text("See More").click()
    ui.sees("advantage of iteration 1: iterations/0001/score/scores.parquet has changed")
    ui.shot("stale", 1300)
    ui.run(again, "Completed")
    ui.tab("Artifacts")
    ui.page.get_by_text("small-page").first.click()
    ui.sees("stale")
    ui.shot("stale-page", 1600)
    run = served.folder / "artifacts" / "small"
    assert manifest(served, "small/iterations/0001/score")["overrides"] == {"score.rewards.1.weight": 0.5}
    (before,) = run.glob("superseded/**/scores.parquet")
    now = pl.read_parquet(run / "iterations/0001/score/scores.parquet")["reward"]
    assert not now.equals(pl.read_parquet(before)["reward"])


def the_approved_one_goes_on(ui: Ui, served: Served, asking: str) -> None:
    served.await_state(asking, "COMPLETED")
    ui.run(asking, "Completed")
    assert (served.folder / "artifacts/asking/iterations/0001/update/manifest.json").is_file()


def a_running_one_is_cancelled(ui: Ui, served: Served) -> None:
    long = train(ui, "long")
    ui.run(long, "Running")
    first = served.folder / "artifacts/long/iterations/0001/update/manifest.json"
    eventually(first.is_file, 180)
    ui.confirm("Cancel", "Confirm")
    served.await_state(long, "CANCELLED")
    ui.run(long, "Cancelled")
    ui.shot("cancelled")
    assert first.is_file()


def what_is_not_there_is_named_and_nothing_changes(ui: Ui, served: Served) -> None:
    before = tree(served.folder / "artifacts" / "small")
    form = ui.form("evaluate")
    form["run"].fill("smal")
    nobody = ui.submit()
    form = ui.form("stage")
    form["stage"].choose("score")
    form["run"].fill("small")
    form["iteration"].fill(9)
    nowhere = ui.submit()
    served.await_state(nobody, "FAILED")
    ui.run(nobody, "Failed")
    ui.sees("no run 'smal' in")
    ui.shot("no-such-run")
    served.await_state(nowhere, "FAILED")
    ui.run(nowhere, "Failed")
    ui.shot("no-such-iteration")
    assert tree(served.folder / "artifacts" / "small") == before


def a_policy_is_measured_with_more_completions(ui: Ui, served: Served) -> None:
    form = ui.form("evaluate")
    form["run"].fill("small")
    form["first"].fill(2)
    form["overrides"].opened()["evaluate"].opened()["samples"].fill(3)
    measured = ui.submit()
    served.await_state(measured, "COMPLETED")
    ui.run(measured, "Completed")
    ui.tab("Details")
    ui.sees("iteration 2: heldout_success")
    ui.shot("evaluated", 1300)
    done = manifest(served, "small/iterations/0002/evaluate")
    assert done["overrides"] == {"evaluate.samples": 3}
    assert done["outputs"]["rollouts.parquet"]["rows"] == 3 * 16


def train(ui: Ui, name: str) -> str:
    """Starts a training of a configuration as it is."""
    form = ui.form("train")
    form["config"].choose(f"configs/{name}.yaml")
    return ui.submit()


def manifest(served: Served, place: str) -> Any:
    return json.loads((served.folder / "artifacts" / place / "manifest.json").read_text())


def tree(folder: Path) -> dict[Path, int]:
    """What is there, and when each file was written, but for the lock."""
    return {path: path.is_file() and path.name != "run.lock" and path.stat().st_mtime_ns for path in folder.rglob("*")}
