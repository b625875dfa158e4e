"""The report's content: what is counted, what is chosen, what is escaped."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import tarfile
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_labels import write_side_labels
from made_report import (
    CLASS_IDS,
    EMOJI,
    FAILURE,
    RTL,
    SCRIPT,
    verdict,
    write_audit,
    write_labeled,
    write_made,
    write_made_audit,
)
from pycocotools import mask as coco
from tiny_run import rewrite, vouch_again

from synthgen.dataset.loader import open_dataset
from synthgen.dataset.metadata import parse_rows
from synthgen.dataset.previews import preview_keys, shard_previews
from synthgen.dataset.records import encode_image
from synthgen.dataset.verify import verify_dataset
from synthgen.lab.bench.made_dataset import KS, make_sample, write_dataset
from synthgen.lab.bench.report import bench_report
from synthgen.report.audits import Audit, existing_audits, pick_audit
from synthgen.report.overview import count_bins
from synthgen.report.page import render_report, write_report
from synthgen.report.samples import choose
from synthgen.storage.publish import open_storage
from synthgen.types import Verdict


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_made(tmp_path_factory.mktemp("report") / "made")


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_made(tmp_path_factory.mktemp("audited") / "made")
    write_made_audit(root)
    return root


def picked(root: Path, audit_id: str | None = None) -> Audit:
    storage = open_storage(root)
    manifest = json.loads((root / "manifest.json").read_text())
    tars = {f"train-{i:06d}": shard["sha256"] for i, shard in enumerate(manifest["shards"])}
    audit = pick_audit(existing_audits(storage, tars), audit_id)
    assert audit is not None
    return audit


def test_made_datasets_are_complete_and_correct(tmp_path: Path) -> None:
    """What stands in for real datasets must be one: also its rows' places in the tars."""
    root = write_made(tmp_path / "made")
    assert verify_dataset(root, deep=True) == []
    rows = parse_rows((root / "metadata" / "train-000001.parquet").read_bytes())
    tar = (root / "data" / "train-000001.tar").read_bytes()
    for row in rows[:-1]:
        part = tar[row.byte_offset : row.byte_offset + row.byte_size]
        with tarfile.open(fileobj=io.BytesIO(part)) as members:
            assert {name.partition(".")[0] for name in members.getnames()} == {row.key}
            assert len(members.getnames()) == 4
    assert rows[-1].byte_offset == -1


class Text(HTMLParser):
    """The text of a page outside script and style, and its tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] not in {"script", "style"}:
            self.parts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.parts).split())


def render(root: Path, audit: str | None = None, num: int = 60) -> str:
    return render_report(open_storage(root), audit, num)


def payloads(html: str) -> list[dict[str, Any]]:
    found = re.findall(r'<script type="application/json" id="sample-\d+">(.*?)</script>', html)
    return [json.loads(text) for text in found]


def test_prompts_are_text_and_the_page_loads_nothing(dataset: Path) -> None:
    html = render(dataset)
    page = Text(html)
    for prompt in (SCRIPT, RTL, EMOJI):
        assert " ".join(prompt.split()) in page.text
    assert [payload["prompt"] for payload in payloads(html)][:3] == [SCRIPT, RTL, EMOJI]
    assert FAILURE.message in page.text
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert sum("type" not in attributes for attributes in scripts) == 1
    for _, attributes in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        for name in ("src", "href"):
            assert re.match(r"data:|#", attributes.get(name) or "#")
    policies = [a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a]
    assert policies[0].startswith("default-src 'none'; img-src data:; script-src 'sha256-")


def test_every_picture_has_words(dataset: Path) -> None:
    page = Text(render(dataset))
    assert all(a.get("alt") for tag, a in page.tags if tag == "img")
    assert all(a.get("aria-labelledby") for tag, a in page.tags if tag == "svg")


def test_counts_are_those_of_the_loader(dataset: Path) -> None:
    page = Text(render(dataset))
    samples = list(open_dataset(dataset))
    assert "Samples 5" in page.text
    assert "Failed 1 of 6" in page.text
    masks = sum(len(sample["masks"]) for sample in samples)
    assert f"masks: {masks:,} values" in page.text
    assert "black_image 1" in page.text


def test_payload_masks_are_the_datasets(dataset: Path) -> None:
    for payload, sample in zip(payloads(render(dataset)), open_dataset(dataset), strict=True):
        segments = json.loads(zlib.decompress(base64.b64decode(payload["masks"])))
        size = [payload["height"], payload["width"]]
        rles = [{"size": size, "counts": segment["rle"]} for segment in segments]
        masks = coco.decode(rles).transpose(2, 0, 1).astype(bool)
        np.testing.assert_array_equal(masks, sample["masks"])
        assert all(segment["iou"] == -1 for segment in segments)


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_labeled(tmp_path_factory.mktemp("labeled") / "made")
    assert verify_dataset(root, deep=True) == []
    return root


def semantic_of(payload: dict[str, Any]) -> np.ndarray:
    pixels = zlib.decompress(base64.b64decode(payload["semantic"]))
    return np.frombuffer(pixels, np.uint8).reshape(payload["height"], payload["width"])


def test_payloads_carry_classes_and_their_names(labeled: Path, dataset: Path) -> None:
    names = {**{str(i): name for name, i in CLASS_IDS.items()}, "0": "background"}
    for payload, sample in zip(payloads(render(labeled)), open_dataset(labeled), strict=True):
        semantic = semantic_of(payload)
        np.testing.assert_array_equal(semantic, sample["semantic"])
        expected = {str(i): {**names, "255": "undecided"}[str(i)] for i in np.unique(semantic)}
        assert payload["names"] == expected
        assert payload["not_found"] == sample["json"]["not_found"] == ["never"]
    for payload in payloads(render(dataset)):
        assert (payload["semantic"], payload["names"], payload["not_found"]) == ("", {}, [])


def test_the_class_table_counts_what_the_maps_hold(labeled: Path, dataset: Path) -> None:
    page = Text(render(labeled))
    maps = np.stack([sample["semantic"] for sample in open_dataset(labeled)])
    for name, number in CLASS_IDS.items():
        images, share = (maps == number).any((1, 2)).sum(), (maps == number).mean()
        missed = len(maps) if name == "never" else 0
        row = rf"{re.escape(name)} {100 * share:.2f} % {images} \d\.\d\d {missed} "
        assert re.search(row, page.text), (row, page.text)
    left, undecided = (maps == 0).mean(), (maps == 255).mean()
    assert f"Background {100 * left:.1f} %, undecided {100 * undecided:.1f} %" in page.text
    assert "over 4 images" in page.text
    assert "Labeled 4 of 4" in page.text
    assert "Labeled" not in Text(render(dataset)).text
    assert "Labels none: see synthgen label" in Text(render(dataset)).text


def test_labels_beside_a_dataset_are_shown_when_asked_for(tmp_path: Path) -> None:
    root = write_labeled(tmp_path / "made")
    members: dict[str, dict[str, dict[str, bytes]]] = {}
    for sample in open_dataset(root):
        shard = members.setdefault(f"train-{sample['key'][:6]}", {})
        tree = {**sample["json"], "not_found": ["cat"], "instances": []}
        tree["segments"] = [{**item, "label": "other"} for item in tree["segments"]]
        flipped = encode_image(255 - sample["semantic"], "png")
        content = json.dumps(tree).encode()
        shard[sample["key"]] = {"json": content, "sem.png": flipped}
    write_side_labels(root, "side", members)
    with pytest.raises(ValueError, match=r"ids of classes.json. Got \[253, 254"):
        render_report(open_storage(root), None, 60, "side")
    table = json.loads((root / "classes.json").read_text())
    table |= {str(255 - i): f"flipped {i}" for i in (1, 2)}
    (root / "classes.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match=r"classes\.json must be the file that manifest\.json"):
        render_report(open_storage(root), None, 60, "side")
    vouch_again(root)
    html = render_report(open_storage(root), None, 60, "side")
    for payload, sample in zip(payloads(html), open_dataset(root, labels="side"), strict=True):
        np.testing.assert_array_equal(semantic_of(payload), sample["semantic"])
        assert payload["not_found"] == ["cat"]
        segments = json.loads(zlib.decompress(base64.b64decode(payload["masks"])))
        assert {item["label"] for item in segments} == {"other"}
    assert "side , beside the dataset" in Text(html).text
    with pytest.raises(ValueError, match="there: side"):
        render_report(open_storage(root), None, 60, "sid")


def test_large_images_are_shown_smaller_with_their_true_area(tmp_path: Path) -> None:
    write_dataset(tmp_path / "big", [make_sample(0, "big", (40, 1040))], 1)
    (payload,) = payloads(render(tmp_path / "big"))
    assert (payload["height"], payload["width"]) == (14, 347)
    assert (payload["full_height"], payload["full_width"]) == (40, 1040)


def test_previews_are_read_for_the_asked_keys_only(dataset: Path) -> None:
    storage = open_storage(dataset)
    assert preview_keys(storage, "train-000000") == [f"{n:010d}" for n in range(3)]
    assert preview_keys(storage, "train-000001") == ["0000010001"]
    ((key, preview),) = shard_previews(storage, "train-000000", {"0000000001"})
    assert key == "0000000001"
    labels = make_sample(1, RTL, (48, 64)).segmentation.labels
    np.testing.assert_array_equal(np.stack([preview.labels[k] for k in KS]), labels)
    assert list(shard_previews(storage, "train-000009", {key})) == []


def test_an_audit_ranks_samples_and_names_reasons(audited: Path) -> None:
    html = render(audited, num=6)
    page = Text(html)
    keys = [sample["key"] for sample in open_dataset(audited)]
    ranked = [keys[i] for i in sorted(range(5), key=lambda i: verdict(i).metrics["top_5"])]
    extremes = html[html.index('id="extremes"') : html.index('id="distributions"')]
    shown = [int(n) for n in re.findall(r'data-sample="(\d+)"', extremes)]
    assert [keys[n] for n in shown] == [*ranked[:2], *ranked[::-1][:2]]
    assert "Worst 2 by Top-5" in page.text
    assert "low_agreement 1" in page.text
    assert "Kept by audit 4 of 5" in page.text
    summary = {"id": "made-audit", "note": SCRIPT}
    assert " ".join(json.dumps(summary, indent=1).split()) in page.text


def test_the_audit_finished_last_is_shown_and_the_others_are_named(tmp_path: Path) -> None:
    root = write_made(tmp_path / "made")
    for audit_id, hour in (("zebra", 3), ("late-b", 9), ("late-a", 9), ("a-first", 1)):
        write_made_audit(root, audit_id, hour)
    write_made_audit(root, "cut-off", 23)
    (root / "audit" / "cut-off" / "summary.json").unlink()
    (root / "audit" / "cut-off" / "train-000001.json").unlink()
    (root / "audit" / "..evil").mkdir()
    page = Text(render(root))
    assert "Audit late-a , finished 2026-11-21 09:00 UTC: the last one of 5." in page.text
    others = page.text[page.text.index("Others, for") :]
    names = ["late-b", "zebra", "a-first", "cut-off (unfinished, 1 of 2 shards)"]
    places = [others.index(name) for name in names]
    assert places == sorted(places)
    assert "evil" not in page.text
    asked = Text(render(root, audit="cut-off"))
    assert "Audit cut-off , unfinished, 1 of 2 shards." in asked.text
    assert "Kept by audit 2 of 3" in asked.text


def test_tables_about_another_tar_do_not_count(tmp_path: Path) -> None:
    root = write_made(tmp_path / "made")
    write_made_audit(root)
    marker = root / "audit" / "made-audit" / "train-000000.json"
    rewrite(marker, tar_sha256="f" * 64)
    assert list(picked(root).shards) == ["train-000001"]
    shutil.rmtree(root / "audit" / "made-audit")
    assert "Nobody checked a mask" in render(root)


def test_audit_ious_are_those_of_every_pair(audited: Path) -> None:
    infos = [s["json"] for s in open_dataset(audited) if s["key"].startswith("000000")]
    segments = {info["key"]: info["segments"] for info in infos}
    found = picked(audited).ious("train-000000", segments)
    for info in infos:
        ours = [segment["rle"] for segment in info["segments"]]
        pairs = coco.iou(ours, ours[::3], [0] * len(ours[::3]))
        np.testing.assert_allclose(found[info["key"]], pairs.max(1), atol=1e-12)


def test_nan_metrics_are_left_out_of_means(audited: Path) -> None:
    audit = picked(audited)
    assert len(audit.metrics["boundary_f"]) == 4
    assert audit.mean("boundary_f") == 0.5
    assert audit.mean("no such metric") is None


def test_choosing_prefers_extremes_then_previews() -> None:
    keys = [f"{n:02d}" for n in range(30)]
    scores = {key: n / 30 for n, key in enumerate(keys)}
    chosen, worst, best = choose(keys, {"10", "11", "12"}, scores, 12, 20)
    assert worst == keys[:4]
    assert best == keys[:-5:-1]
    assert {"10", "11", "12"} < set(chosen)
    assert len(chosen) == 12
    assert choose(keys, set(), {}, 100, 20)[0] == keys


def test_no_sample_is_both_worst_and_best() -> None:
    for num in range(8):
        scores = {str(n): n / 10 for n in range(num)}
        _, worst, best = choose(sorted(scores), set(), scores, 60, 20)
        assert not set(worst) & set(best)
        assert len(worst) == len(best) == num // 2


def test_charts_say_what_is_counted_and_each_k_has_a_bar(tmp_path: Path) -> None:
    root = write_made(tmp_path / "made")
    tops = {2: 0.25, 10: 0.5, 20: 0.75}
    metrics = {"top_5": 0.6, **{f"top_5_k{k}": value for k, value in tops.items()}}
    write_audit(root, "per-k", lambda _: Verdict(True, "", metrics), "2026-01-01T00:00:00+00:00")
    html = render(root)
    chart = html[html.index("Top-5 of each k alone") :]
    heights = re.findall(r'<rect [^>]*height="([\d.]+)"><title>k = (\d+)', chart)
    assert [int(k) for _, k in heights] == list(tops)
    assert float(heights[2][0]) == pytest.approx(3 * float(heights[0][0]), abs=0.1)
    for unit in ("images", "masks", "samples"):
        assert f'<text x="4" y="11">{unit}</text>' in html


def test_histograms_equal_numpys_over_everything() -> None:
    rng = np.random.default_rng(0)
    values, edges = rng.normal(0.5, 0.4, 500), np.linspace(0, 1, 8)
    counted = sum(count_bins(part, edges) for part in np.split(values, 5))
    expected = np.histogram(np.clip(values, 0, 1), edges)[0]
    np.testing.assert_array_equal(counted, expected)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "manifest.json").unlink(), "needs a finished dataset"),
        (lambda root: (root / "data/train-000001.tar").unlink(), "must exist"),
        (lambda root: _truncate(root / "data/train-000000.tar"), "manifest.json vouches for"),
        (lambda root: _truncate(root / "previews/train-000000.tar"), "stats/.* vouches for"),
        (lambda root: (root / "metadata/train-000000.parquet").write_bytes(b"x"), "parquet"),
        (lambda root: _garble(root / "audit/made-audit/train-000000.parquet"), "audit"),
    ],
)
def test_broken_datasets_are_one_clear_line(tmp_path: Path, damage: Any, message: str) -> None:
    root = write_made(tmp_path / "made")
    write_made_audit(root)
    damage(root)
    with pytest.raises(ValueError, match=message) as caught:
        render(root)
    assert "\n" not in str(caught.value)


def test_unknown_audits_and_numbers_are_refused(audited: Path) -> None:
    with pytest.raises(ValueError, match="It has made-audit"):
        render(audited, audit="../made-audit")
    with pytest.raises(ValueError, match="num must be at least 1"):
        write_report(audited, num=0)


def test_bench_report_measures_a_process_of_its_own() -> None:
    result = bench_report(quick=True)
    assert result["samples"] == result["shown"] == 20
    assert result["peak_mb"] >= result["imports_mb"] > 50
    assert 0 < result["page_mb"] < 15


def _garble(path: Path) -> None:
    path.write_bytes(b"x" * path.stat().st_size)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2048])
