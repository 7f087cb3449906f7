"""Seeds, metrics, digests and paths."""

import math
import os
from fractions import Fraction
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.contract import digest as digests
from stages.contract.digest import file_digest, known_digest, names_digest
from stages.contract.errors import ConfigError
from stages.contract.metrics import Meter, mean
from stages.contract.paths import RunPaths
from stages.contract.seeds import derive

PARTS = st.lists(st.integers() | st.text(st.characters(codec="utf-8")), max_size=4)


def test_a_seed_is_the_digest_of_its_tagged_parts_and_will_not_change() -> None:
    digest = blake3(b"int:1:7;str:6:sample;int:1:3;").digest()
    assert derive(7, "sample", 3) == int.from_bytes(digest[:8], "big") // 2
    assert derive(7, "sample", 3) == SEED_OF_7_SAMPLE_3
    assert derive() == SEED_OF_NOTHING


SEED_OF_7_SAMPLE_3 = 7760518205923451575
SEED_OF_NOTHING = 6307754022119723219


def test_seeds_tell_part_boundaries_order_and_types_apart() -> None:
    tuples: list[tuple[int | str, ...]] = [
        ("a", "bc"),
        ("ab", "c"),
        ("abc",),
        ("abc", ""),
        ("", "abc"),
        ("c", "ab"),
        (1,),
        ("1",),
        (1, 1),
        (11,),
        (-1,),
        ("a;str:1:b",),
        ("a", "b"),
        (),
    ]
    assert len({derive(*parts) for parts in tuples}) == len(tuples)


@settings(deadline=None)
@given(PARTS, PARTS)
def test_a_seed_is_in_range_and_only_equal_parts_share_it(one: list[int | str], other: list[int | str]) -> None:
    assert 0 <= derive(*one) < 2**63
    assert (derive(*one) == derive(*other)) == (one == other)


def test_seeds_fill_the_range() -> None:
    seeds = [derive("fill", i) for i in range(4000)]
    assert abs(sum(seeds) / len(seeds) / 2**63 - 0.5) < 0.03  # 6.6 standard errors
    assert sum(seed % 2 for seed in seeds) == pytest.approx(2000, abs=200)


def test_a_meter_adds_means_by_weight_sums_by_value_and_keeps_extremes() -> None:
    meter = Meter()
    for total, count, tokens, ratio in ((6.0, 3, 10, 1.5), (2.0, 1, 20, 0.5), (-4.0, 4, 5, 1.25)):
        meter.mean("loss", total, count)
        meter.sum("tokens", tokens)
        meter.max("ratio_max", ratio)
        meter.min("ratio_min", ratio)
    assert meter.result() == {"loss": 0.5, "tokens": 35.0, "ratio_max": 1.5, "ratio_min": 0.5}


def test_a_mean_over_nothing_is_left_out_rather_than_zero() -> None:
    meter = Meter()
    meter.mean("entropy", 0.0, 0)
    meter.mean("kl", 0.0, 2)
    assert meter.result() == {"kl": 0.0}
    assert Meter().result() == {}


def test_extremes_of_negative_values_are_not_zero() -> None:
    meter = Meter()
    for value in (-3.0, -2.0):
        meter.max("greatest", value)
        meter.min("least", value)
    assert meter.result() == {"greatest": -2.0, "least": -3.0}


def test_meters_do_not_share_figures() -> None:
    one, other = Meter(), Meter()
    one.sum("rows", 1)
    assert other.result() == {}


@settings(deadline=None)
@given(st.lists(st.integers(-1000, 1000), min_size=1), st.integers(1, 5))
def test_a_mean_does_not_depend_on_the_parts(values: list[int], size: int) -> None:
    meter = Meter()
    for start in range(0, len(values), size):
        part = values[start : start + size]
        meter.mean("loss", float(sum(part)), len(part))
    assert meter.result()["loss"] == float(Fraction(sum(values), len(values)))


def test_the_mean_of_what_is_there() -> None:
    assert mean([1.0, None, 4.0]) == 2.5
    assert mean([None, None]) is None
    assert mean([]) is None
    assert mean([1e16, 1.0, -1e16]) == 1 / 3


def test_a_file_digest_is_that_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    for content in (b"", b"a", b"policy" * 300_000):
        path.write_bytes(content)
        assert file_digest(path) == blake3(content).hexdigest()
    assert blake3(b"").hexdigest() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


def test_a_large_file_is_read_again_once_it_was_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = tmp_path / "weights", []
    monkeypatch.setattr(digests, "file_digest", lambda path: read.append(path) or file_digest(path))
    monkeypatch.setattr(digests, "LARGE", 4)
    path.write_bytes(b"policy")
    times = path.stat()
    assert [known_digest(path) for _ in range(3)] == [blake3(b"policy").hexdigest()] * 3
    assert len(read) == 1
    path.write_bytes(b"polish")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert known_digest(path) == blake3(b"polish").hexdigest()
    path.write_bytes(b"abc")  # a small one is read each time
    assert [known_digest(path) for _ in range(2)] == [blake3(b"abc").hexdigest()] * 2
    assert len(read) == 4


def test_a_folder_digest_depends_on_names_and_contents_but_not_on_order() -> None:
    folder = {"config.json": "11", "model.safetensors": "22"}
    assert names_digest(folder) == blake3(b"11  config.json\n22  model.safetensors\n").hexdigest()
    assert names_digest(folder) == names_digest(dict(reversed(folder.items())))
    others = [
        {"config.json": "22", "model.safetensors": "11"},
        {"config.json": "11", "model2.safetensors": "22"},
        {"config.json": "11"},
        {},
    ]
    assert len({names_digest(other) for other in (folder, *others)}) == 5


NOT_NAMES = [
    "",
    ".",
    "..",
    "../other",
    "a/b",
    "/etc",
    "a\0b",
    "-rf",
    ".hidden",
    "_x",
    "a b",
    "a\n",
    "é",
    "~",
    "a" * 101,
]


@pytest.mark.parametrize("name", [*NOT_NAMES, "a\\b", "x" * 300], ids=ascii)
def test_a_run_name_that_could_leave_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^run name '.*': use up to 100 letters, digits") as caught:
        RunPaths.named(tmp_path, name)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["a", "7", "quick-start_2.1", "a..b", "a" * 100])
def test_a_plain_run_name_is_a_folder_below_artifacts(name: str, tmp_path: Path) -> None:
    assert RunPaths.named(tmp_path, name).root == tmp_path / name


@settings(deadline=None)
@given(st.text())
def test_no_accepted_name_leaves_the_folder(name: str) -> None:
    artifacts = Path("/srv/artifacts")
    try:
        root = RunPaths.named(artifacts, name).root
    except ConfigError:
        return
    assert root.parent == artifacts
    assert root.name == name not in {".", ".."}


def test_the_places_of_a_run() -> None:
    paths = RunPaths(Path("artifacts/night"))
    places = {
        "run.yaml": paths.config,
        "run.lock": paths.lock,
        "iterations/0012/score": paths.stage(12, "score"),
        "iterations/0012/.score.partial": paths.partial(12, "score"),
        "iterations/0000/update/policy": paths.policy(0),
        "iterations/12345/update": paths.stage(12345, "update"),
        "superseded/0012/score.3": paths.superseded(12, "score", 3),
    }
    assert {name: paths.relative(place) for name, place in places.items()} == {name: name for name in places}
    assert {place: str(place) for place in places.values()} == {
        place: f"artifacts/night/{name}" for name, place in places.items()
    }


def test_a_file_is_traced_to_the_stage_that_made_it() -> None:
    paths = RunPaths(Path("artifacts/night"))
    assert paths.stage_of(paths.policy(3) / "config.json") == paths.stage(3, "update")
    assert paths.stage_of(paths.stage(3, "score") / "scores.parquet") == paths.stage(3, "score")
    assert paths.stage_of(paths.config) is None
    assert paths.stage_of(Path("data/prompts.jsonl")) is None
    assert paths.relative(Path("data/prompts.jsonl")) == str(Path.cwd() / "data/prompts.jsonl")
    assert paths.relative(Path("artifacts/other/run.yaml")) == str(Path.cwd() / "artifacts/other/run.yaml")


def test_a_mean_of_infinities_is_not_hidden() -> None:
    meter = Meter()
    meter.mean("loss", math.inf, 1)
    meter.max("ratio_max", math.inf)
    assert meter.result() == {"loss": math.inf, "ratio_max": math.inf}
