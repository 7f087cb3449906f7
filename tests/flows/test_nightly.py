"""Nights: three of them with the clock moved, one better, one worse, one killed; and the rules they go by."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from flows.config.loading import read_config
from flows.config.schema import NightsConfig, RunConfig
from flows.execution.run_stage import perform
from flows.nightly import spend
from flows.orchestration.night_run import Desk, departures
from flows.runs.access import open_run, writing
from flows.runs.approvals import decide
from flows.runs.forking import fork
from flows.runs.history import History
from flows.runs.nights import (
    Night,
    again,
    left_open,
    new_night,
    read_night,
    reason_to_skip,
    reason_to_stop,
    write_night,
    zone,
)
from flows.runs.promotion import against_promoted, baseline, promote, promoted, promotion
from flows.runs.staleness import stages_of
from stages.contract.config import config_digest
from stages.contract.errors import ArtifactError, ConfigError
from stages.contract.lock import run_lock
from stages.contract.paths import RunPaths
from tests.flows.conftest import ROOT, SMALL, environment, run_grpo
from tests.flows.serving.served import eventually

SHORT = [{"type": "length", "target": 2, "limit": 6}]  # to be brief is learned in a few iterations
BEGIN = datetime(2026, 3, 27, 1, tzinfo=UTC)  # 02:00 in Berlin; summer time begins two nights later


def night_at(folder: Path, when: datetime, run: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.flows.night_at", when.isoformat(), run]
    variables = environment() | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=variables, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def said(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    return out


def the_night(paths: RunPaths, date: str) -> Night:
    night = read_night(paths, date)
    assert night is not None
    return night


def morning(paths: RunPaths, date: str) -> str:
    return (paths.nights / f"{date}.md").read_text(encoding="utf-8")


def test_three_nights_one_better_one_worse_one_killed(served) -> None:
    folder, paths = served.folder, RunPaths(served.folder / "artifacts/nights")
    settings = {
        "run": "nights",
        "score.rewards": SHORT,
        "gate": "before_promote",
        "evaluate.prompts": 8,
        "nights.prompts": 64,
        "nights.samples": 4,
        "nights.iterations": 3,
    }
    config = read_config(SMALL, settings)
    with writing(paths, config, print):
        for k in (0, 1):
            for stage in stages_of(History(paths), config, k):
                perform(paths.root, stage, k, {})
    assert promoted(paths) is None

    # The first night trains well, and someone has to agree.
    assert "the promotion of iteration 4 waits for a decision" in said(night_at(folder, BEGIN, "nights"))
    assert the_night(paths, "2026-03-27").status == "waiting" and promoted(paths) == 0
    decide(paths, config, "approved", "", {})
    out = said(night_at(folder, BEGIN + timedelta(hours=5), "nights"))
    night = the_night(paths, "2026-03-27")
    assert night.status == "done" and (night.before, night.last) == (1, 4) and night.promoted, out
    assert promoted(paths) == 4
    figures = promotion(paths).figures
    assert figures["new"] > figures["old"] + 0.1 and figures["low"] > 0
    assert figures["prompts"] > 16  # of the night's evaluation, not the eight of every iteration
    assert "better than the promoted policy beyond noise" in night.why
    assert "**Iteration 4 promoted**" in morning(paths, "2026-03-27")

    # Before the second one, an update goes wrong.
    far_too_fast = {"update.optimizer.learning_rate": 0.05, "update.optimizer.schedule": {"type": "constant"}}
    for stage in ("sample", "score", "advantage", "update"):
        perform(paths.root, stage, 5, far_too_fast if stage == "update" else {})
    out = said(night_at(folder, BEGIN + timedelta(days=1), "nights"))
    night = the_night(paths, "2026-03-28")
    assert night.status == "done" and (night.before, night.last) == (4, 7) and not night.promoted, out
    assert promoted(paths) == 4
    assert "worse than the promoted policy beyond noise" in night.why
    page = morning(paths, "2026-03-28")
    assert "**Iteration 7 held back**" in page and "grpo fork nights --at 4" in page
    held_back = {"filter": {"event": {"name": ["grpo-flows.night.held-back"]}}}
    told = eventually(
        lambda: served.api("POST", "/events/filter", held_back)["events"], 60
    )  # it stores them in batches
    assert [event["payload"]["date"] for event in told] == ["2026-03-28"]
    artifact = served.api("GET", "/artifacts/nights-night/latest")
    assert artifact["data"].startswith("# nights · night of 2026-03-28")

    # The third one is killed, and started again an hour later; a twin of the run is spared.
    shutil.copytree(paths.root, folder / "artifacts/spared")
    third = BEGIN + timedelta(days=2)
    twin = night_at(folder, third, "spared")
    process = night_at(folder, third, "nights")
    eventually(lambda: paths.stage(8, "score").is_dir() or process.poll() is not None, 300)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    night = the_night(paths, "2026-03-29")
    assert night.status == "running" and not paths.stage(10, "update").exists()

    out = said(night_at(folder, third + timedelta(hours=1), "nights"))
    night = the_night(paths, "2026-03-29")
    assert night.status == "done" and (night.before, night.last, night.starts) == (7, 10, 2), out
    assert third <= night.began < third + timedelta(minutes=59)  # its hours count from there
    assert "begun 2 times" in morning(paths, "2026-03-29")
    said(twin)
    spared = RunPaths(folder / "artifacts/spared")
    assert History(paths).policy_digest(10) == History(spared).policy_digest(10)
    assert the_night(spared, "2026-03-29").why == night.why


def test_a_night_that_is_spent_late_or_finds_the_run_at_work_leaves_everything_alone(small_folder, tmp_path) -> None:
    shutil.copytree(small_folder / "artifacts/small", tmp_path / "small")
    paths, config = open_run(tmp_path, "small")

    def told(now: datetime, due: datetime | None) -> tuple[str | None, str | None]:
        state = spend(paths, config, config.nights, "Europe/Berlin", lambda: now, due)
        return state.name, state.message

    def files() -> dict[str, bytes]:
        found = (path for path in paths.root.rglob("*") if path.is_file() and path.suffix != ".lock")
        return {str(path): path.read_bytes() for path in found}

    write_night(paths, record(status="done"))
    before = files()
    name, why = told(BEGIN, BEGIN)
    assert name == "Skipped" and why == "the night of 2026-03-27 was spent already"
    name, why = told(BEGIN, BEGIN - timedelta(days=3))
    assert name == "Skipped" and why is not None and "due at 2026-03-24 02:00 CET, more than 4 h ago" in why
    with run_lock(paths.lock, print):
        name, why = told(BEGIN + timedelta(days=1), BEGIN + timedelta(days=1))
    assert name == "Skipped" and why is not None and f"in use by process {os.getpid()}" in why
    assert files() == before


def test_served_a_night_is_spent_once_a_date_and_reported(served, small_folder) -> None:
    shutil.copytree(small_folder / "artifacts/small", served.folder / "artifacts/twice")
    paths = RunPaths(served.folder / "artifacts/twice")
    paths.data.mkdir()
    (paths.data / "new.jsonl").write_text('{"prompt": "30 + 1", "expression": "30 + 1", "answer": "31"}\n')
    (paths.data / "broken.parquet").write_bytes(b"PAR1")
    done = served.run("nightly", run="twice", iterations=1)
    assert done["type"] == "COMPLETED" and done["message"].startswith("iteration 4 "), (done, served.logs())
    (record,) = paths.nights.glob("*.json")
    night = the_night(paths, record.stem)
    assert (night.before, night.last, night.stopped) == (3, 4, "it had trained 1 iteration")
    assert night.prompts == {"new prompts from iteration 4 on": 1}
    assert len(night.told) == 1 and "broken.parquet: cannot be read as Parquet" in night.told[0]
    assert "1 new prompts from iteration 4 on" in morning(paths, record.stem)
    again = served.run("nightly", run="twice", iterations=1)
    assert (again["type"], again["name"]) == ("COMPLETED", "Skipped"), again
    assert not paths.stage(5, "sample").exists()
    wrong = served.run("nightly", run="twice", timezone="Mars/Olympus")
    assert wrong["type"] == "FAILED" and "no time zone 'Mars/Olympus'" in wrong["message"]


def test_by_the_command_a_policy_is_promoted_by_hand_and_served_by_that_word(small_folder, tmp_path) -> None:
    shutil.copytree(small_folder / "artifacts/small", tmp_path / "artifacts/small")
    paths = RunPaths(tmp_path / "artifacts/small")
    none = run_grpo(tmp_path, "export", "small", "--promoted", "--to", "here")
    assert none.returncode == 2 and "nothing of small has been promoted" in none.stderr
    worse = run_grpo(tmp_path, "promote", "small", "--iteration", 3)
    assert worse.returncode == 2 and re.search(r"iteration 3 is (not better|worse) than", worse.stderr), worse.stderr
    assert promoted(paths) is None
    forced = run_grpo(tmp_path, "promote", "small", "--iteration", 2, "--force")
    assert forced.returncode == 0 and promoted(paths) == 2, forced.stderr
    done = run_grpo(tmp_path, "export", "small", "--promoted", "--to", "here")
    assert "iteration 2" in done.stdout, done.stderr
    perform(paths.root, "update", 2, {"update.epochs": 1})
    changed = run_grpo(tmp_path, "export", "small", "--promoted", "--to", "there")
    assert changed.returncode == 2 and "was made again after it was promoted" in changed.stderr


def desk(paths: RunPaths, config: RunConfig, night: Night) -> Desk:
    write_night(paths, night)
    return Desk(paths, config, config.nights, lambda: BEGIN, night)


def test_a_night_that_was_killed_after_its_verdict_keeps_it(small_folder, tmp_path) -> None:
    shutil.copytree(small_folder / "artifacts/small", tmp_path / "small")
    paths, config = open_run(tmp_path, "small")
    promote(paths, 3, "better")
    begun = new_night("2026-03-27", BEGIN, 1, NightsConfig(iterations=2)).model_copy(update={"last": 3})
    killed_before_its_record = desk(paths, config, begun)
    killed_before_its_record.judge()
    assert the_night(paths, "2026-03-27").promoted and killed_before_its_record.night.why == "better"
    judged = desk(paths, config, begun.model_copy(update={"promoted": False, "why": "worse"}))
    judged.judge()
    assert (judged.night.promoted, judged.night.why) == (False, "worse")
    idle = desk(paths, config, begun.model_copy(update={"before": 3}))
    idle.judge()
    assert not idle.night.promoted and "no policy after the promoted one, that of iteration 3" in idle.night.why


def test_a_night_is_not_over_before_its_report_is_written(small_folder, tmp_path) -> None:
    shutil.copytree(small_folder / "artifacts/small", tmp_path / "small")
    paths, config = open_run(tmp_path, "small")
    promote(paths, 3, "better")
    night = desk(paths, config, record(before=1, last=3, promoted=True, why="better"))
    (paths.nights / "2026-03-27.md").mkdir()
    with pytest.raises(OSError, match=r"2026-03-27\.md"):
        night.close()
    assert the_night(paths, "2026-03-27").status == "running"
    (paths.nights / "2026-03-27.md").rmdir()
    assert night.close() == "iteration 3 promoted: better"
    assert the_night(paths, "2026-03-27").status == "done" and "Iteration 3 promoted" in morning(paths, "2026-03-27")


def test_in_a_fork_the_policy_that_it_parted_from_is_to_be_beaten(small_folder, tmp_path) -> None:
    shutil.copytree(small_folder / "artifacts/small", tmp_path / "small")
    small, _ = open_run(tmp_path, "small")
    small.config.write_text(re.sub(r"(?m)^evaluate:\n(  .*\n)+", "evaluate: null\n", small.config.read_text()))
    assert open_run(tmp_path, "small")[1].evaluate is None and baseline(small) == 0
    paths = fork(tmp_path, "small", 2, "parted", {"evaluate.prompts": 8, "evaluate.samples": 1}, print)
    config = open_run(tmp_path, "parted")[1]
    assert baseline(paths) == 2
    # Its iteration was not evaluated by a configuration of its own: it is by the fork's.
    there, wanted = History(paths).config(2, config).section("evaluate"), config.section("evaluate")
    assert there["evaluate"] is None
    perform(paths.root, "evaluate", 2, departures(there, wanted))
    done = History(paths).manifest(2, "evaluate")
    assert done is not None and done.config_digest == config_digest(wanted)
    promote(paths, 1, "by hand")
    assert baseline(paths) == 1


def test_a_promoted_policy_that_was_made_again_is_nothing_to_compare_with(small_folder, tmp_path) -> None:
    shutil.copytree(small_folder / "artifacts/small", tmp_path / "small")
    paths, config = open_run(tmp_path, "small")
    promote(paths, 2, "better")
    assert against_promoted(paths, config, 3).prompts == 16
    perform(paths.root, "update", 2, {"update.epochs": 1})
    with pytest.raises(ArtifactError, match="the policy of iteration 2 was made again after it was promoted"):
        against_promoted(paths, config, 3)


def record(**changes: object) -> Night:
    return new_night("2026-03-27", BEGIN, 4, NightsConfig(iterations=3, hours=2)).model_copy(update=changes)


def test_a_night_ends_with_its_iterations_or_its_hours() -> None:
    assert reason_to_stop(record(last=6), BEGIN, [60.0]) is None
    assert reason_to_stop(record(last=7), BEGIN, [60.0]) == "it had trained 3 iterations"
    late = BEGIN + timedelta(hours=1, minutes=50)
    assert reason_to_stop(record(), late, [500.0, 590.0]) is None
    assert reason_to_stop(record(), late, [610.0, 500.0]) == (
        "another iteration takes some 610 s, and 600 s of its hours were left"
    )
    assert reason_to_stop(record(), late, [610.0, 500.0, 500.0, 500.0]) is None  # that was long ago
    assert reason_to_stop(record(), BEGIN + timedelta(hours=2), []) == "its hours were over"
    assert reason_to_stop(record(wanted=None, until=None, last=900), late, [1e9]) is None


def test_hours_for_which_a_gate_waited_are_not_counted() -> None:
    waiting = record(status="waiting", ended=BEGIN + timedelta(minutes=30))
    resumed = again(waiting, BEGIN + timedelta(hours=7))
    assert resumed.until == BEGIN + timedelta(hours=8, minutes=30) and resumed.status == "running"
    killed = again(record(status="running"), BEGIN + timedelta(hours=7))
    assert killed.until == BEGIN + timedelta(hours=2) and killed.starts == 2


@pytest.mark.parametrize(
    ("status", "skipped"), [("done", True), ("cut off", True), ("running", False), ("failed", False)]
)
def test_a_date_has_one_night_which_goes_on_until_it_is_done(status: str, skipped: bool) -> None:
    reason = reason_to_skip(record(status=status), "2026-03-27", BEGIN, BEGIN, NightsConfig())
    assert (reason is not None) == skipped


def test_of_missed_nights_only_one_that_is_hardly_late_begins() -> None:
    now = BEGIN + timedelta(hours=3)
    assert reason_to_skip(None, "2026-03-27", now, BEGIN, NightsConfig(late=4)) is None
    missed = reason_to_skip(None, "2026-03-26", now, BEGIN - timedelta(days=1), NightsConfig(late=4))
    assert missed is not None and "due at 2026-03-26 01:00 UTC, more than 4 h ago; the next one goes on" in missed
    assert reason_to_skip(None, "2026-03-27", now, None, NightsConfig()) is None
    # One that was begun goes on, however late.
    assert reason_to_skip(record(), "2026-03-27", BEGIN + timedelta(days=2), BEGIN, NightsConfig()) is None


def test_a_night_that_never_ended_is_known_to_the_next_one(tmp_path) -> None:
    paths = RunPaths(tmp_path)
    write_night(paths, record())
    write_night(paths, record(date="2026-03-26", status="done"))
    assert [night.date for night in left_open(paths, "2026-03-28")] == ["2026-03-27"]
    assert left_open(paths, "2026-03-27") == []


def test_time_zones_know_summer_time_and_one_that_does_not_exist_is_told() -> None:
    berlin = zone("Europe/Berlin")
    before, after = (datetime(2026, 3, day, 2, tzinfo=berlin).astimezone(UTC).hour for day in (28, 30))
    assert (before, after) == (1, 0)
    assert isinstance(zone(None), ZoneInfo)
    for name in ("Mars/Olympus", "../etc/passwd", "Europe"):
        with pytest.raises(ConfigError, match="there is no time zone"):
            zone(name)


def test_a_schedule_keeps_its_hour_through_summer_time_and_names_its_run() -> None:
    from prefect.server.schemas.schedules import CronSchedule

    from flows.serving.deployments import schedule_of
    from flows.serving.settings import NightSchedule

    told = NightSchedule(run="quickstart", cron="0 2 * * *", timezone="Europe/Berlin")
    schedule = schedule_of(told)
    assert schedule.parameters == {"run": "quickstart", "timezone": "Europe/Berlin"}
    times = CronSchedule(**schedule.schedule.model_dump())
    dates = asyncio.run(times.get_dates(3, start=datetime(2026, 10, 24, tzinfo=UTC)))
    assert [date.astimezone(zone("Europe/Berlin")).hour for date in dates] == [2, 2, 2]
    assert [date.astimezone(UTC).hour for date in dates] == [0, 0, 1]  # the clocks go back in the second night


def test_a_schedule_that_cannot_be_is_told_before_anything_starts(small_folder) -> None:
    def told(*options: str) -> str:
        done = run_grpo(small_folder, "serve", "--configs", SMALL.parent, "--port", 0, *options)
        assert done.returncode == 2, done.stdout
        return done.stderr

    assert "no run 'smal'" in told("--nights", "smal")
    assert "a cron line like '0 2 * * *' is wanted" in told("--nights", "small", "--cron", "at two")
    assert "no time zone 'Mars/Olympus'" in told("--nights", "small", "--timezone", "Mars/Olympus")
