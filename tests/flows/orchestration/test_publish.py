"""What is shown of a run: a page as a file, and in Prefect's UI progress, a table, a page, log lines and names."""

import base64
import io
import json
import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path
from uuid import uuid4

import polars as pl
import pytest
from PIL import Image
from prefect.client.schemas.actions import ArtifactCreate
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.inspection.plots import Curve, Panel, draw
from flows.inspection.report import as_html, fenced, inline, report
from flows.orchestration.prefect_ui import PATIENCE, Publisher, key_of
from flows.runs import observers
from flows.runs.access import open_run
from flows.runs.history import History
from tests.flows.conftest import run_grpo
from tests.flows.serving.served import eventually

HOSTILE = [
    "</code></pre><script>alert(1)</script><img src=x onerror=alert(2)>",
    "```\n# not a heading\n````\n![p](http://example.com/p.png)\n~~~",
    "<!-- | a | b |\n| --- | --- |\n[link](javascript:alert(3)) &lt;b&gt; \x1b[31m\x00\u202e **bold**",
]


class Reader(HTMLParser):
    """What of an HTML page a browser would act on, and the texts of its code blocks."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.sources: list[str] = []
        self.blocks: list[str] = []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag == "pre":
            self._inside = True
            self.blocks.append("")

    def handle_endtag(self, tag):
        self._inside = self._inside and tag != "pre"

    def handle_data(self, data):
        if self._inside:
            self.blocks[-1] += data


@pytest.fixture
def folder(small_folder, tmp_path):
    """A copy of the small run that a test may change."""
    shutil.copytree(small_folder / "artifacts/small", tmp_path / "artifacts/small")
    return tmp_path


def page_of(folder):
    paths, config = open_run(folder / "artifacts", "small")
    return report(History(paths), config)


def picture_in(page):
    [encoded] = re.findall(r"\(data:image/png;base64,([^)]+)\)", page)
    return Image.open(io.BytesIO(base64.b64decode(encoded)))


def test_a_page_shows_what_the_tables_hold(small_folder):
    page = page_of(small_folder)
    iteration = small_folder / "artifacts/small/iterations/0003"
    scores = pl.read_parquet(iteration / "score/scores.parquet")["reward"]
    assert page.startswith("# small · iteration 3\n")
    assert f"reward {scores.mean():.4f} · held-out" in page
    rows = [line.split(" | ") for line in page.splitlines() if re.match(r"\| \d", line)]
    assert [row[0] for row in rows] == ["| 0", "| 1", "| 2", "| 3"]
    assert rows[3][1] == f"{scores.mean():.4f}"
    assert rows[0][1] == "–"
    best, worst = page.split("## Best completions of iteration 3")[1].split("## Worst completions of iteration 3")
    assert re.findall(r"Reward ([\d.]+),", best)[0] == f"{scores.max():.4f}"
    assert re.findall(r"Reward ([\d.]+),", worst)[0] == f"{scores.min():.4f}"
    assert "## Stale" not in page
    assert len(page.encode()) < 100_000
    picture = picture_in(page)
    assert picture.size == (920, 750)  # six panels in two columns


def test_a_completion_cannot_break_out_of_the_page(folder):
    iteration = folder / "artifacts/small/iterations/0003"
    rollouts = pl.read_parquet(iteration / "sample/rollouts.parquet")
    texts = [HOSTILE[i % 3] for i in range(rollouts.height)]
    rollouts.with_columns(pl.Series("completion", texts), pl.Series("prompt", texts)).write_parquet(
        iteration / "sample/rollouts.parquet"
    )
    manifest = json.loads((iteration / "sample/manifest.json").read_text())
    manifest["notes"]["warnings"] = [HOSTILE[0], HOSTILE[2]]
    manifest["outputs"]["rollouts.parquet"]["size"] = (iteration / "sample/rollouts.parquet").stat().st_size
    (iteration / "sample/manifest.json").write_text(json.dumps(manifest))
    read = Reader(as_html(page_of(folder), "small"))
    assert not read.tags & {"script", "a", "iframe", "b", "strong", "em", "h3"}
    assert [source[:22] for source in read.sources] == ["data:image/png;base64,"]
    assert len(read.blocks) == 6
    shown = " ".join(read.blocks)
    assert "<img src=x onerror=alert(2)>" in shown
    assert "# not a heading" in shown
    assert "\\u{1b}[31m\\u{0}\\u{202e} **bold**" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    "text", [*HOSTILE, "`" * 9, "plain", "a\n\n    b", "<", "&amp;", "\\", "http://a.b", "1. x", "- x"]
)
def test_texts_mean_nothing_but_themselves(text):
    block, line = Reader(as_html(fenced(text), "")), as_html(inline(text), "").rpartition("</style>")[2]
    if "\0" not in text:  # of which Markdown makes the replacement character; pages spell it out before
        assert block.blocks == [text + "\n"]
    read = Reader(line)
    assert read.tags == {"p"}


def test_a_page_says_what_is_stale_and_why(folder):
    path = folder / "artifacts/small/iterations/0002/advantage/advantages.parquet"
    path.write_bytes(path.read_bytes()[:100])
    page = page_of(folder).replace("\\", "")
    assert "- advantage of iteration 2: advantages.parquet is damaged or missing" in page
    assert "- sample of iteration 3: update of iteration 2 is not current" in page
    assert "best completions" in page.lower()  # those of the last iteration whose scores are current
    assert "completions of iteration 2" in page


def test_a_page_of_damaged_tables_says_so(folder):
    path = folder / "artifacts/small/iterations/0003/sample/rollouts.parquet"
    path.write_bytes(bytes(path.stat().st_size))
    assert "The completions of iteration 3 cannot be read; `grpo verify small` says more." in page_of(folder)


def test_report_writes_a_page_as_a_file(small_folder, tmp_path):
    at = ["--artifacts", small_folder / "artifacts"]
    done = run_grpo(tmp_path, "report", "small", *at)
    assert (done.returncode, done.stdout) == (0, "small.html: small up to iteration 3\n")
    read = Reader((tmp_path / "small.html").read_text())
    assert {"h1", "h2", "table", "img", "pre"} <= read.tags
    assert not any(source.startswith("http") for source in read.sources)
    assert run_grpo(tmp_path, "report", "small", "--to", "page.md", *at).returncode == 0
    assert (tmp_path / "page.md").read_text() == page_of(small_folder)
    refused = run_grpo(tmp_path, "report", "small", "--to", "page.pdf", *at)
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: --to page.pdf: the name of a page ends in .html or .md\n",
    )
    assert not (tmp_path / "page.pdf").exists()
    assert "no run 'nowhere'" in run_grpo(tmp_path, "report", "nowhere", *at).stderr


def test_a_picture_of_many_iterations_stays_small():
    curve = Curve("one", [(k, (k * 7919) % 1000 / 1000) for k in range(3000)])
    picture = draw([Panel(f"panel {i}", "nats", [curve, curve]) for i in range(6)])
    assert len(picture) * 4 / 3 < 90_000
    assert draw([Panel("nothing", "nats", [Curve("none", [])])]) is None
    alone = draw([Panel("nothing", "nats", [Curve("none", [])]), Panel("one point", "nats", [Curve("a", [(1, 2.0)])])])
    assert Image.open(io.BytesIO(alone)).size == (460, 250)


def test_keys_of_different_runs_differ_and_are_such_as_prefect_takes():
    names = ["quickstart", "Quickstart", "a.b", "a_b", "a-b", "A-B", "a" * 100, "1.5"]
    keys = [key_of(name, "page") for name in names]
    assert keys[0] == "quickstart-page"
    assert keys[4] == "a-b-page"
    assert len({*keys}) == len(names)
    for key in keys:
        assert ArtifactCreate(key=key, type="markdown").key == key


class Ear:
    """A watcher that hears what is said."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def working(self, stage, k, done, total):
        pass

    def stage_done(self, paths, stage, k, told):
        pass

    def iteration_done(self, paths, k):
        pass

    def say(self, text):
        self.heard.append(text)


def test_a_server_that_is_gone_is_told_of_once_and_stops_nothing(small_folder):
    paths, config = open_run(small_folder / "artifacts", "small")
    ear = Ear()
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}), observers.watching(ear):
        publisher = Publisher(paths, config, 3, uuid4())
        publisher.working("sample", 3, 10, 64)
        publisher.stage_done(paths, "sample", 3, "done for the first time")
        publisher.iteration_done(paths, 3)
        begun = time.monotonic()
        publisher.close()
        assert time.monotonic() - begun < PATIENCE + 1
    [heard] = ear.heard
    assert heard.startswith("Prefect's UI does not show this run's latest state: ")


def latest(served, key):
    return served.api("GET", f"/artifacts/{key}/latest")


def logged(served, run):
    logs = served.api("POST", "/logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC"})
    return [entry for entry in logs if entry["name"] in ("grpo-flows", "prefect.task_runs")]


def test_the_ui_shows_a_training_while_it_goes_on_and_a_rerun(served):
    run = served.start(
        "train",
        config="configs/small.yaml",
        run="watched",
        iterations=2,
        overrides={"warmstart": {"tuning": {"steps": 1000}}},
    )
    seen: dict[str, float] = {}

    def over():
        found = served.api("POST", "/artifacts/filter", {"artifacts": {"key": {"any_": ["watched-progress"]}}})
        seen.update({entry["description"]: entry["data"] for entry in found})
        return served.state(run)["type"] in ("COMPLETED", "FAILED", "CRASHED")

    eventually(over, 180, served.logs)
    assert served.state(run)["type"] == "COMPLETED", served.logs()
    moving = {text: share for text, share in seen.items() if 0 < share < 100 and "warmstart" in text}
    assert moving, seen
    for text, share in moving.items():
        [done] = re.fullmatch(r"Iteration 0 of 2, warmstart: (\d+) of 1000 optimizer steps\.", text).groups()
        assert share == pytest.approx(int(done) / 10)

    assert served.api("GET", f"/flow_runs/{run}")["name"] == "watched · iteration 2"
    tasks = served.api("POST", "/task_runs/filter", {"task_runs": {"flow_run_id": {"any_": [run]}}})
    assert {"warmstart · watched/0", "score · watched/1", "evaluate · watched/2"} <= {task["name"] for task in tasks}

    iteration = served.folder / "artifacts/watched/iterations/0002"
    reward = pl.read_parquet(iteration / "score/scores.parquet")["reward"].mean()
    table = json.loads(latest(served, "watched-table")["data"])
    assert [row["iteration"] for row in table] == [2, 1, 0]
    assert table[0]["reward"] == pytest.approx(reward, abs=5e-5)
    assert {"held-out", "KL", "entropy", "length", "sample s", "update s"} <= table[0].keys()
    page = latest(served, "watched-page")["data"]
    assert page.startswith("# watched · iteration 2\n")
    assert picture_in(page).format == "PNG"
    assert len(page.encode()) < 100_000

    lines = logged(served, run)
    told = [entry["message"] for entry in lines]
    assert [text for text in told if re.match(r"iteration 2 of 2: reward [\d.]+, held-out ", text)]
    stages = [entry for entry in lines if entry["message"].startswith("score of iteration 1: 64 rows in ")]
    assert stages[0]["task_run_id"] in {task["id"] for task in tasks if task["name"] == "score · watched/1"}
    assert len(lines) == len(tasks) + 3  # a line a stage and a line an iteration, and nothing else

    done = served.run(
        "stage", stage="score", run="watched", iteration=1, overrides={"score": {"rewards": {"1": {"weight": 1.0}}}}
    )
    assert done["type"] == "COMPLETED", served.logs()
    page = latest(served, "watched-page")["data"].replace("\\", "")
    assert "- advantage of iteration 1: iterations/0001/score/scores.parquet has changed" in page
    again = served.run(
        "train",
        config="configs/small.yaml",
        run="watched",
        iterations=2,
        overrides={"warmstart": {"tuning": {"steps": 1000}}},
    )
    assert again["type"] == "COMPLETED", served.logs()
    assert "## Stale" not in latest(served, "watched-page")["data"]
    states = served.api("POST", "/task_runs/filter", {"sort": "EXPECTED_START_TIME_DESC"})
    reused = [task for task in states if task["name"] == "score · watched/1" and task["state_name"] == "Reused"]
    assert reused[0]["state"]["message"] == "with score.rewards.1.weight=1.0"
    assert Path(served.folder / "artifacts/watched/superseded/0001/advantage.1").is_dir()
