"""Configuration: one line per mistake, a digest of what determines bytes, a lossless dump."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from synthgen.config import Config, digest, dump, load, parse


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("segmentation.clusters.ks=[5,2]", ["segmentation.clusters.ks", "increasing", "(5, 2)"]),
        ("segmentation.clusters.ks=[2,300]", ["ks", "254"]),
        ("segmentation.cluster.ks=[2]", ["unknown key", "Did you mean 'segmentation.clusters'"]),
        ("generation.hight=3", ["unknown key", "generation.height"]),
        ("num=0", ["num", "greater than or equal to 1", "Got 0"]),
        ("capture.calls=[2.0]", ["capture.calls", "[2.0]"]),
        ("model.dtype=int8", ["model.dtype", "bfloat16", "int8"]),
        ("bogus", ["key=value", "bogus"]),
        ("seed.x=1", ["seed", "valid integer"]),
        ("seed=[", ["seed", "YAML"]),
    ],
)
def test_a_mistake_is_one_line_that_names_key_and_value(override: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        load(overrides=[override])
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_override_reaches_into_a_file_and_dump_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("num: 5\nsegmentation: {clusters: {ks: [2, 3]}}\n")
    config = load(path, ["segmentation.features.components=4", "seed=9"])
    assert (config.num, config.seed) == (5, 9)
    assert config.segmentation.clusters.ks == (2, 3)
    assert config.segmentation.features.components == 4
    path.write_text(dump(config))
    assert load(path) == config


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\x00"])
def test_unreadable_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="configuration must be"):
        load(path)
    with pytest.raises(ValueError, match="readable"):
        load(tmp_path / "absent.yaml")


def test_digest_settings_leave_out_paths_and_the_number_of_samples() -> None:
    one = Config(num=1, prompts="a.jsonl").digest_settings()
    assert one == Config(num=9, prompts="b.jsonl").digest_settings()
    assert one != Config(seed=1).digest_settings()
    changed = load(overrides=["segmentation.masks.merge_iou=0.8"]).digest_settings()
    assert digest(one) != digest(changed)


def test_every_setting_is_either_in_the_digest_or_listed_as_left_out() -> None:
    settings = Config().digest_settings()
    tree = yaml.safe_load(dump(Config()))
    missing = {
        f"{section}.{key}"
        for section, values in tree.items()
        if isinstance(values, dict)
        for key in values
        if key not in settings.get(section, {})
    }
    missing |= {key for key in tree if key not in settings}
    off = {f"labeling.{key}" for key in tree["labeling"]} | {"labeling"}
    labeled = load(overrides=["labeling.method=clusters"]).digest_settings()["labeling"]
    hashed = {"labeling", "labeling.parts"}  # files, see `jobs.identity`
    assert off == {f"labeling.{key}" for key in labeled if key != "version"} | hashed
    annotating = ["annotation.images=[photos]", "annotation.tiles=2"]
    given = load(overrides=annotating).digest_settings()["annotation"]
    as_before = load(overrides=annotating[:1]).digest_settings()["annotation"]
    assert set(given) - set(as_before) == {"tiles"}  # there where it is not 1
    off |= {f"annotation.{key}" for key in given} | {"annotation"}
    assert missing - off == {
        "annotation.images",  # their names and hashes are, see test_annotate
        "annotation.captions",
        "num",
        "extended",
        "balance",
        "prompts",
        "classes",  # unless they are given, see test_classes
        "model.card",
        "model.revision",
        "model.lora",
        "model.device",
        "capture.device",
        "generation.workers",
        "capture.memory_budget_mb",
    }


def test_settings_of_earlier_versions_are_read_and_not_taken() -> None:
    """Digests are what they were, so that datasets in the making go on."""
    before = load(overrides=["labeling.method=vote", "labeling.refiner=pamr"])
    tree = yaml.safe_load(dump(before))
    tree["capture"] |= {"rows": "cond", "heatmaps": "prompt"}
    tree["segmentation"]["clusters"] |= {"solver": "knot", "restarts": 1}
    tree["labeling"] |= {"method": "pcc", "refiner": "guided"}
    assert parse(yaml.safe_dump(tree).encode()) == before
    del tree["segmentation"]["refiner"]
    assert parse(yaml.safe_dump(tree).encode()).segmentation.refiner == "none"
    settings = before.digest_settings()
    assert (settings["capture"]["rows"], settings["capture"]["heatmaps"]) == ("cond", "none")
    assert (settings["labeling"]["method"], settings["labeling"]["refiner"]) == ("pcc", "guided")
    with pytest.raises(ValueError, match=r"capture\.heatmaps is no setting any more.*'prompt'"):
        load(overrides=["capture.heatmaps=prompt"])
    assert load(overrides=["segmentation.clusters.restarts=1"]) == load()
    for key, new in (("method=pcc", "vote"), ("refiner=pcc", "color-majority")):
        with pytest.raises(ValueError, match=f"pcc is called {new}"):
            load(overrides=[f"labeling.{key}"])
