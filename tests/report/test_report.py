"""The report's content: what is counted, what is chosen, what is escaped."""

from __future__ import annotations

import base64
import json
import re
import shutil
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_dataset import make_sample, write_dataset
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
from synthgen.dataset.records import encode_image
from synthgen.dataset.verify import verify_dataset
from synthgen.lab.memory import peak_bytes
from synthgen.lab.processes import in_processes
from synthgen.report.audits import Audit, existing_audits
from synthgen.report.overview import count_bins
from synthgen.report.page import render_report, write_report
from synthgen.report.samples import choose
from synthgen.storage.publish import open_storage
from synthgen.types import Verdict


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands in for real datasets must be one."""
    root = write_made(tmp_path_factory.mktemp("report") / "made")
    assert verify_dataset(root, deep=True) == []
    return root


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_labeled(tmp_path_factory.mktemp("labeled") / "made")
    assert verify_dataset(root, deep=True) == []
    return root


@pytest.fixture
def audited(dataset: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    root = shutil.copytree(dataset, tmp_path / "made")
    write_made_audit(root)
    return root


def read_audit(root: Path) -> Audit:
    manifest = json.loads((root / "manifest.json").read_text())
    tars = {f"train-{i:06d}": shard["sha256"] for i, shard in enumerate(manifest["shards"])}
    return existing_audits(open_storage(root), tars)[0]


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


def render(root: Path, audit: str | None = None, num: int = 60, labels: str | None = None) -> str:
    return render_report(open_storage(root), audit, num, labels)


def payloads(html: str) -> list[dict[str, Any]]:
    """What the explorer gets of each sample, its masks and maps decoded."""
    found = []
    for text in re.findall(r'<script type="application/json" id="sample-\d+">(.*?)<', html):
        payload = json.loads(text)
        size = payload["height"], payload["width"]
        payload["masks"] = json.loads(zlib.decompress(base64.b64decode(payload["masks"])))
        if payload["semantic"]:
            pixels = zlib.decompress(base64.b64decode(payload["semantic"]))
            payload["semantic"] = np.frombuffer(pixels, np.uint8).reshape(size)
        found.append(payload)
    return found


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
    assert all(a.get("alt") for tag, a in page.tags if tag == "img")
    assert all(a.get("aria-labelledby") for tag, a in page.tags if tag == "svg")


def test_counts_and_masks_are_those_of_the_loader(dataset: Path) -> None:
    html, samples = render(dataset), list(open_dataset(dataset))
    masks = sum(len(sample["masks"]) for sample in samples)
    for words in ("Samples 5", "Failed 1 of 6", f"masks: {masks:,} values", "black_image 1"):
        assert words in Text(html).text
    for payload, sample in zip(payloads(html), samples, strict=True):
        size = [payload["height"], payload["width"]]
        rles = [{"size": size, "counts": segment["rle"]} for segment in payload["masks"]]
        found = coco.decode(rles).transpose(2, 0, 1).astype(bool)
        np.testing.assert_array_equal(found, sample["masks"])
        assert all(segment["iou"] == -1 for segment in payload["masks"])
        assert (payload["semantic"], payload["names"], payload["not_found"]) == ("", {}, [])


def test_classes_are_counted_and_named(labeled: Path, dataset: Path) -> None:
    names = {**{str(i): name for name, i in CLASS_IDS.items()}, "0": "background"}
    html, samples = render(labeled), list(open_dataset(labeled))
    for payload, sample in zip(payloads(html), samples, strict=True):
        np.testing.assert_array_equal(payload["semantic"], sample["semantic"])
        ids = map(str, np.unique(sample["semantic"]))
        assert payload["names"] == {i: {**names, "255": "undecided"}[i] for i in ids}
        assert payload["not_found"] == sample["json"]["not_found"] == ["never"]
    text, maps = Text(html).text, np.stack([sample["semantic"] for sample in samples])
    for name, number in CLASS_IDS.items():
        images, share = (maps == number).any((1, 2)).sum(), (maps == number).mean()
        missed = len(maps) if name == "never" else 0
        row = rf"{re.escape(name)} {100 * share:.2f} % {images} \d\.\d\d {missed} "
        assert re.search(row, text), (row, text)
    left, undecided = (maps == 0).mean(), (maps == 255).mean()
    assert f"Background {100 * left:.1f} %, undecided {100 * undecided:.1f} %" in text
    assert "over 4 images" in text
    assert "Labeled 4 of 4" in text
    bare = Text(render(dataset)).text
    assert "Labeled" not in bare
    assert "Labels none: see synthgen label" in bare


def test_labels_beside_a_dataset_are_shown_when_asked_for(labeled: Path, tmp_path: Path) -> None:
    root = shutil.copytree(labeled, tmp_path / "made")
    members: dict[str, dict[str, dict[str, bytes]]] = {}
    for sample in open_dataset(root):
        shard = members.setdefault(f"train-{sample['key'][:6]}", {})
        tree = {**sample["json"], "not_found": ["cat"], "instances": []}
        tree["segments"] = [{**item, "label": "other"} for item in tree["segments"]]
        flipped = encode_image(255 - sample["semantic"], "png")
        shard[sample["key"]] = {"json": json.dumps(tree).encode(), "sem.png": flipped}
    write_side_labels(root, "side", members)
    with pytest.raises(ValueError, match=r"ids of classes.json. Got \[253, 254"):
        render(root, labels="side")
    table = json.loads((root / "classes.json").read_text())
    table |= {str(255 - i): f"flipped {i}" for i in (1, 2)}
    (root / "classes.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match=r"classes\.json must be the file that manifest\.json"):
        render(root, labels="side")
    vouch_again(root)
    html = render(root, labels="side")
    for payload, sample in zip(payloads(html), open_dataset(root, labels="side"), strict=True):
        np.testing.assert_array_equal(payload["semantic"], sample["semantic"])
        assert payload["not_found"] == ["cat"]
        assert {item["label"] for item in payload["masks"]} == {"other"}
    assert "side , beside the dataset" in Text(html).text
    with pytest.raises(ValueError, match="there: side"):
        render(root, labels="sid")


def test_large_images_are_shown_smaller_with_their_true_area(tmp_path: Path) -> None:
    write_dataset(tmp_path / "big", [make_sample(0, "big", (40, 1040))], 1)
    (payload,) = payloads(render(tmp_path / "big"))
    assert (payload["height"], payload["width"]) == (14, 347)
    assert (payload["full_height"], payload["full_width"]) == (40, 1040)


def test_an_audit_ranks_samples_and_names_reasons(audited: Path) -> None:
    html = render(audited, num=6)
    page = Text(html)
    keys = [sample["key"] for sample in open_dataset(audited)]
    ranked = [keys[i] for i in sorted(range(5), key=lambda i: verdict(i).metrics["top_5"])]
    extremes = html[html.index('id="extremes"') : html.index('id="distributions"')]
    shown = [int(n) for n in re.findall(r'data-sample="(\d+)"', extremes)]
    assert [keys[n] for n in shown] == [*ranked[:2], *ranked[::-1][:2]]
    summary = {"id": "made-audit", "note": SCRIPT}
    for words in (
        *("Worst 2 by Top-5", "low_agreement 1", "Kept by audit 4 of 5", "color baseline 0.100"),
        " ".join(json.dumps(summary, indent=1).split()),
    ):
        assert words in page.text


def test_the_audit_finished_last_is_shown_and_the_others_are_named(
    dataset: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(dataset, tmp_path / "made")
    for audit_id, hour in (("zebra", 3), ("late-b", 9), ("late-a", 9), ("a-first", 1)):
        write_made_audit(root, audit_id, hour)
    write_made_audit(root, "cut-off", 23)
    (root / "audit" / "cut-off" / "summary.json").unlink()
    (root / "audit" / "cut-off" / "train-000001.json").unlink()
    (root / "audit" / "..evil").mkdir()
    page = Text(render(root))
    assert "Audit late-a , finished 2026-11-21 09:00 UTC; the newest of 5 audits." in page.text
    others = page.text[page.text.index("Others, for") :]
    names = ["late-b", "zebra", "a-first", "cut-off (unfinished, 1 of 2 shards)"]
    places = [others.index(name) for name in names]
    assert places == sorted(places)
    assert "evil" not in page.text
    asked = Text(render(root, audit="cut-off"))
    assert "Audit cut-off , unfinished, 1 of 2 shards." in asked.text
    assert "Kept by audit 2 of 3" in asked.text


def test_tables_about_another_tar_do_not_count(audited: Path) -> None:
    marker = audited / "audit" / "made-audit" / "train-000000.json"
    rewrite(marker, tar_sha256="f" * 64)
    assert list(read_audit(audited).shards) == ["train-000001"]
    shutil.rmtree(audited / "audit" / "made-audit")
    assert "Nobody checked a mask" in render(audited)


def test_metrics_and_ious_are_those_of_the_audit(audited: Path) -> None:
    audit = read_audit(audited)
    assert len(audit.metrics["boundary_f"]) == 4, "one is NaN"
    assert (audit.mean("boundary_f"), audit.mean("no such metric")) == (0.5, None)
    infos = [s["json"] for s in open_dataset(audited) if s["key"].startswith("000000")]
    found = audit.ious("train-000000", {info["key"]: info["segments"] for info in infos})
    for info in infos:
        ours = [segment["rle"] for segment in info["segments"]]
        pairs = coco.iou(ours, ours[::3], [0] * len(ours[::3]))
        np.testing.assert_allclose(found[info["key"]], pairs.max(1), atol=1e-12)


def test_choosing_prefers_extremes_then_previews_and_none_is_both() -> None:
    keys = [f"{n:02d}" for n in range(30)]
    scores = {key: n / 30 for n, key in enumerate(keys)}
    chosen, worst, best = choose(keys, {"10", "11", "12"}, scores, 12, 20)
    assert (worst, best, len(chosen)) == (keys[:4], keys[:-5:-1], 12)
    assert {"10", "11", "12"} < set(chosen)
    assert choose(keys, set(), {}, 100, 20)[0] == keys
    for num in range(8):
        _, worst, best = choose(keys[:num], set(), dict(list(scores.items())[:num]), 60, 20)
        assert not set(worst) & set(best)
        assert len(worst) == len(best) == num // 2


def test_charts_say_what_is_counted_and_each_k_has_a_bar(dataset: Path, tmp_path: Path) -> None:
    root = shutil.copytree(dataset, tmp_path / "made")
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
    values, edges = np.random.default_rng(0).normal(0.5, 0.4, 500), np.linspace(0, 1, 8)
    counted = sum(count_bins(part, edges) for part in np.split(values, 5))
    np.testing.assert_array_equal(counted, np.histogram(np.clip(values, 0, 1), edges)[0])


def cut(name: str, size: int) -> Any:
    """Damage that keeps or cuts a file's size: zeros, or its first bytes."""

    def damage(root: Path) -> None:
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[:size] if size else bytes(len(content)))

    return damage


@pytest.mark.parametrize(
    ("damage", "asked", "message"),
    [
        (lambda root: (root / "manifest.json").unlink(), {}, "needs a finished dataset"),
        (lambda root: (root / "data/train-000001.tar").unlink(), {}, "must exist"),
        (cut("data/train-000000.tar", 2048), {}, "manifest.json vouches for"),
        (cut("previews/train-000000.tar", 2048), {}, "stats/.* vouches for"),
        (cut("metadata/train-000000.parquet", 1), {}, "parquet"),
        (cut("audit/made-audit/train-000000.parquet", 0), {}, "audit"),
        (lambda root: None, {"audit": "../made-audit"}, "It has made-audit"),
        (lambda root: None, {"num": 0}, "num must be at least 1"),
    ],
)
def test_broken_datasets_and_wishes_are_one_clear_line(
    audited: Path, damage: Any, asked: dict[str, Any], message: str
) -> None:
    damage(audited)
    with pytest.raises(ValueError, match=message) as caught:
        write_report(audited, **asked)
    assert "\n" not in str(caught.value)


def measure(folder: Path) -> tuple[float, float]:
    """Resident memory in MB at most, and size of the page in MB; in a process of its own."""
    page = write_report(folder / "made", num=60, out=folder / "index.html")
    return peak_bytes() / 1e6, page.stat().st_size / 1e6


@pytest.mark.slow
def test_the_report_of_a_thousand_samples_fits_into_a_gigabyte(tmp_path: Path) -> None:
    """Sixty of 512 x 512 pixels on the page, with 43 clusters each and previews: 780 and 12.5."""
    samples = [make_sample(seed, f"sample {seed}", (512, 512)) for seed in range(4)]
    write_dataset(tmp_path / "made", samples, 1000)
    ((memory, size),) = in_processes(measure, [(tmp_path,)], workers=1)
    print(f"{memory:.0f} MB of memory, {size:.1f} MB page")
    assert memory < 1000
    assert size < 15
