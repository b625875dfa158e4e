"""The report's content: what is counted, what is chosen, what is escaped, what is served."""

from __future__ import annotations

import http.client
import json
import re
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_report import EMOJI, FAILURE, RTL, SCRIPT, write_audit, write_made
from pycocotools import mask as coco

from synthgen.bench.made_dataset import KS, make_sample, write_dataset
from synthgen.bench.report import bench_report
from synthgen.dataset.loader import open_dataset
from synthgen.dataset.previews import preview_keys, shard_previews
from synthgen.dataset.publish import open_storage
from synthgen.report.audits import auditor_ious, pick_audit
from synthgen.report.overview import Histogram
from synthgen.report.page import render_report, write_report
from synthgen.report.samples import choose
from synthgen.report.serve import make_server


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_made(tmp_path_factory.mktemp("report") / "made")


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = write_made(tmp_path_factory.mktemp("audited") / "made")
    return root, write_audit(root)


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
    import base64
    import zlib

    for payload, sample in zip(payloads(render(dataset)), open_dataset(dataset), strict=True):
        segments = json.loads(zlib.decompress(base64.b64decode(payload["masks"])))
        size = [payload["height"], payload["width"]]
        rles = [{"size": size, "counts": segment["rle"]} for segment in segments]
        masks = coco.decode(rles).transpose(2, 0, 1).astype(bool)
        np.testing.assert_array_equal(masks, sample["masks"])
        assert all(segment["iou"] == -1 for segment in segments)


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


def test_an_audit_ranks_samples_and_names_reasons(audited: tuple[Path, dict[str, Any]]) -> None:
    root, rows = audited
    html = render(root, num=6)
    page = Text(html)
    ranked = sorted(rows, key=lambda key: rows[key]["top_5"])
    extremes = html[html.index('id="extremes"') : html.index('id="distributions"')]
    shown = [int(n) for n in re.findall(r'data-sample="(\d+)"', extremes)]
    keys = sorted(rows)
    assert [keys[n] for n in shown] == [*ranked[:2], *ranked[::-1][:2]]
    assert "Worst 2 by Top-5" in page.text
    assert "low_agreement 1" in page.text
    assert "Kept by audit 4 of 5" in page.text
    assert " ".join(json.dumps({"note": SCRIPT}, indent=1).split()) in page.text


def test_audit_ious_are_those_of_every_pair(audited: tuple[Path, dict[str, Any]]) -> None:
    root, rows = audited
    storage = open_storage(root)
    infos = [s["json"] for s in open_dataset(root) if s["key"].startswith("000000")]
    segments = {info["key"]: info["segments"] for info in infos}
    found = auditor_ious(storage, "made-audit", "train-000000", segments)
    for info in infos:
        ours = [segment["rle"] for segment in info["segments"]]
        theirs = [record["segmentation"] for record in rows[info["key"]]["annotations"]]
        pairs = coco.iou(ours, theirs, [0] * len(theirs))
        np.testing.assert_allclose(found[info["key"]], pairs.max(1), atol=1e-12)


def test_nan_metrics_are_left_out_of_means(audited: tuple[Path, dict[str, Any]]) -> None:
    audit = pick_audit(open_storage(audited[0]), None)
    assert audit is not None
    assert len(audit.of("boundary_f")) == 4
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


def test_histograms_equal_numpys_over_everything() -> None:
    rng = np.random.default_rng(0)
    values, edges = rng.normal(0.5, 0.4, 500), np.linspace(0, 1, 8)
    histogram = Histogram(edges)
    for part in np.split(values, 5):
        histogram.add(part)
    expected = np.histogram(np.clip(values, 0, 1), edges)[0]
    np.testing.assert_array_equal(histogram.counts, expected)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "manifest.json").unlink(), "needs a finished dataset"),
        (lambda root: (root / "data/train-000001.tar").unlink(), "must exist"),
        (lambda root: _truncate(root / "data/train-000000.tar"), "truncated"),
        (lambda root: _truncate(root / "previews/train-000000.tar"), "truncated"),
        (lambda root: (root / "metadata/train-000000.parquet").write_bytes(b"x"), "parquet"),
        (lambda root: (root / "audit/made-audit/train-000000.parquet").write_bytes(b"x"), "audit"),
    ],
)
def test_broken_datasets_are_one_clear_line(tmp_path: Path, damage: Any, message: str) -> None:
    root = write_made(tmp_path / "made")
    write_audit(root)
    damage(root)
    with pytest.raises(ValueError, match=message) as caught:
        render(root)
    assert "\n" not in str(caught.value)


def test_unknown_audits_and_numbers_are_refused(audited: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="It has made-audit"):
        render(audited[0], audit="../made-audit")
    with pytest.raises(ValueError, match="num must be at least 1"):
        write_report(audited[0], num=0)


@pytest.fixture(scope="module")
def address(dataset: Path) -> Iterator[tuple[str, int]]:
    write_report(dataset)
    with make_server(dataset / "report") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield "127.0.0.1", server.server_port
        server.shutdown()


def ask(address: tuple[str, int], method: str, path: str, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*address, timeout=60)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


def test_the_server_knows_the_report_and_nothing_else(
    dataset: Path, address: tuple[str, int]
) -> None:
    page = (dataset / "report" / "index.html").read_bytes()
    assert ask(address, "GET", "/") == (200, page)
    assert ask(address, "GET", "/index.html?x=1") == (200, page)
    assert ask(address, "HEAD", "/") == (200, b"")
    for path in ("/../manifest.json", "/%2e%2e/manifest.json", "//etc/passwd", "/report", "/."):
        assert ask(address, "GET", path)[0] == 404
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(address, method, "/")[0] == 501
    assert ask(address, "GET", "/", Host="evil.example")[0] == 403


def test_a_taken_port_is_one_clear_line(dataset: Path, address: tuple[str, int]) -> None:
    with pytest.raises(OSError, match="must be free"):
        make_server(dataset / "report", address[1])


def test_bench_report_measures_a_process_of_its_own() -> None:
    result = bench_report(quick=True)
    assert result["samples"] == result["shown"] == 20
    assert result["peak_mb"] >= result["imports_mb"] > 50
    assert 0 < result["page_mb"] < 15


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2048])
