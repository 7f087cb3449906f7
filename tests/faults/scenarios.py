"""What is killed: trainings of each kind, reruns, forks, and two kills in a row."""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from stages.contract.digest import file_digest
from stages.contract.paths import RunPaths
from tests.faults.range import Overrides, Range, State, check_end, check_left, check_whole, spread, state, thinned

SMALL = Path(__file__).parents[1] / "data" / "small.yaml"
MANY = ("step", "generate")
"""Places so frequent that one in ten stands for them."""
LENGTHS = [{"type": "length", "target": 2, "limit": 6}, {"type": "overlong", "limit": 6, "cache": 4, "weight": 0.1}]
"""Rewards that need no worker, since each process that is killed would have to start its workers anew."""
BRIEF = {"warmstart.tuning.steps": 8, "iterations": 2, "score.rewards": LENGTHS}
RERUN = {"score.rewards.1.weight": 0.5}
RENAMES = ("rename", "renamed")
CRITIC: Overrides = {"advantage": {"type": "gae"}, "critic": {}, "sample.group_size": 2}
AVERAGE: Overrides = {"update.average.decay": 0.5, "score.reference": {"type": "average"}}
KEEP: Overrides = {"keep.last": 1, "keep.best": 0, "iterations": 3}
WIDE: Overrides = {"warmstart.model.hidden_size": 128, "sample.prompts": 48, "sample.group_size": 8}
"""Enough for torch to divide sums over states among its threads."""


@dataclass(frozen=True)
class Training:
    """A training, by what it has otherwise than `small.yaml`."""

    name: str
    overrides: Overrides
    about: str = "$."
    """The places at which half of the kills are, as a pattern; by default none are preferred."""


ONE_EPOCH = Training("one epoch a batch", BRIEF | {"iterations": 3, "update.epochs": 1})
TWO_EPOCHS = Training("two epochs a batch", {"score.rewards": LENGTHS}, r"/update/\.?optimizer\.safetensors")
WORKERS = Training("verifiers in workers", {"warmstart.tuning.steps": 8, "iterations": 2})
KINDS = (
    Training("retention after each iteration", BRIEF | KEEP, r"^(remove|rmdir)|pruned"),
    Training("sampling in shards", BRIEF | {"sample.shards": 4}, r"\.parts"),
    Training("gae and a critic", BRIEF | CRITIC, r"critic"),
    Training("an average of policies as reference", BRIEF | AVERAGE, r"average"),
    Training("a batch that threads divide", BRIEF | WIDE, r"update"),
    Training("an adapter", BRIEF | {"update.lora": {"rank": 2, "alpha": 4}}, r"adapter|sample"),
)
ALL = Training(
    "retention, shards, a critic and an average at once",
    BRIEF | KEEP | {"sample.shards": 2} | CRITIC | AVERAGE,
    r"^(remove|rmdir)|pruned|\.parts|critic|average",
)


def train(at: Range, run: str, overrides: Overrides) -> None:
    """Trains a run in this process, with the threads that torch takes by itself."""
    from flows.train import train as flow

    flow(str(SMALL), run, overrides=overrides | {"hardware.threads": None}, artifacts=str(at.runs))


@dataclass
class Trained:
    """A training that was once let through, and what it ended with; it is there under the name `unbroken`."""

    at: Range
    training: Training
    places: dict[str, int] = field(default_factory=dict)
    expected: State = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.at.remove("unbroken")

        def whole(reach: Callable[[str, str], bool]) -> None:
            train(self.at, "unbroken", self.training.overrides)
            reach("end", "command")

        self.places = self.at.trace(self.at.paths("unbroken").root, whole)
        self.expected = self.at.must_state("unbroken")

    def go_on(self, run: str, trap: str | int | None = None) -> Callable[[], None]:
        """Checks what is left of a run, goes on with it, dies where it is to, and else compares what it ends with."""

        def work() -> None:
            paths = self.at.paths(run)
            check_left(paths, self.expected)
            reach = self.at.trap(paths.root, trap, self.places.get(str(trap), 0))
            train(self.at, run, self.training.overrides)
            reach("end", "command")
            check_end(paths, self.expected)

        return work

    def chosen(self, count: int) -> None:
        """Kills at so many of all places, one after the other, in their order."""
        at, name = self.at, self.training.name
        about = [place for place in self.places if re.search(self.training.about, place)]
        preferred = spread(about, count // 2, at.dice)
        others = [place for place in thinned(self.places, MANY, at.dice) if place not in preferred]
        wanted = {*preferred, *spread(others, count - len(preferred), at.dice)}
        fresh = True
        for place in (place for place in self.places if place in wanted):
            fresh = not at.attempt(name, place, self.go_on("chosen", place), fresh)
            if fresh:  # it was over before, as it was to be: the next one begins anew
                at.remove("chosen")
        self._end("chosen", fresh)

    def at_random(self, count: int, longest: float = 3.0) -> None:
        """Kills from outside at random moments; those that come too late do not count."""
        fresh = True
        for _ in range(count):
            fresh = not self.at.at_random(self.training.name, self.go_on("random"), longest, fresh)
            if fresh:
                self.at.remove("random")
        self._end("random", fresh)

    def _end(self, run: str, fresh: bool) -> None:
        if not fresh:
            self.at.end(self.go_on(run))
        self.at.remove(run)

    def in_a_row(self, count: int) -> None:
        """Kills inside the last iteration, and once more while what that left is dealt with."""
        at, name, last = self.at, "two kills in a row", max(self.places, key=_iteration)
        k = _iteration(last)
        inside = [place for place in thinned(self.places, MANY, at.dice) if _iteration(place) == k]
        around = [place for place in inside if place.startswith(RENAMES)]
        for place in [*spread(around, count // 4, at.dice), *spread(inside, count // 2 - count // 4, at.dice)]:
            at.copy("unbroken", "twice")
            shutil.rmtree(at.paths("twice").iteration(k))
            if at.attempt(name, place, self.go_on("twice", place), True):
                again = at.attempt(name, None, self.go_on("twice", at.dice.randint(1, 12)))
                self._end("twice", not again)
            at.remove("twice")


def _iteration(place: str) -> int:
    found = re.search(r"(?:iterations| in)/?\s?(\d{4})", place)
    return int(found[1]) if found else 0


def reruns(trained: Trained, name: str, through: int | None, count: int) -> None:
    """Kills a rerun of `score` with a setting at its places: the state before or the one after is found.

    Args:
        trained: of which the second iteration is scored again.
        name: the scenario's.
        through: also makes what follows, up to this iteration.
        count: kills.
    """
    from flows.stage import stage

    at, before = trained.at, trained.expected
    run, overrides = at.paths("rerun"), trained.training.overrides

    def rerun(reach: Callable[[str, str], bool]) -> None:
        stage("score", "rerun", 2, overrides=RERUN, through=through, artifacts=str(at.runs))
        reach("end", "command")

    at.copy("unbroken", "rerun")
    places = at.trace(run.root, rerun)
    at.must(lambda: train(at, "rerun", overrides))
    after = at.must_state("rerun")
    assert after != before
    at.remove("rerun")

    def go_on() -> None:
        train(at, "rerun", overrides)
        check_end(run, before, after)
        moved = any((run.root / "superseded").glob("*/*"))
        assert moved == (state(run) == after), "what was replaced is kept, and nothing else"

    # the renames of the first stage, between which its place is empty, are always tried
    around = [place for place in places if place.startswith(RENAMES) and "0002/score" in place][:count]
    others = [place for place in thinned(places, MANY, at.dice) if place not in around]
    for place in [*around, *spread(others, count - len(around), at.dice)]:
        at.copy("unbroken", "rerun")
        if at.attempt(name, place, lambda place=place: rerun(at.trap(run.root, place, places[place])), True):
            at.end(go_on)
        at.remove("rerun")


def forks(trained: Trained, count: int) -> None:
    """Kills a fork at its places: the new name is free, or a whole run has it; the parent is as it was."""
    from flows.runs.forking import fork

    at, name = trained.at, "a fork"
    child = at.paths("child")

    def make() -> None:
        fork(at.runs, "unbroken", 1, "child", {"update.epochs": 3}, print)

    def traced(reach: Callable[[str, str], bool]) -> None:
        make()
        reach("end", "command")

    places = at.trace(at.runs, traced)
    expected, parent = at.must_state("child", _contents), at.must_state("unbroken", _contents)
    at.remove("child")

    def killed(place: str) -> None:
        traced(at.trap(at.runs, place, places[place]))

    def go_on() -> None:
        assert _contents(at.paths("unbroken")) == parent, "the parent has changed"
        if not child.root.exists():
            make()
        assert _contents(child) == expected, "the fork is not whole"
        check_whole(child)
        left = sorted(path.name for path in at.runs.iterdir())
        assert left == ["child", "unbroken"], f"something half-made is left: {left}"

    for place in spread(list(places), count, at.dice):
        if at.attempt(name, place, lambda place=place: killed(place), True):
            at.end(go_on)
        at.remove("child")


def _contents(paths: RunPaths) -> State:
    """Digests of all files of a run, but for the lock and the time at which a fork was made."""
    root = paths.root
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    out = {name: file_digest(path) for name, path in files.items() if name != "run.lock"}
    if "fork.json" in files:
        out["fork.json"] = re.sub(r'"when": "[^"]*"', "", files["fork.json"].read_text())
    return out
