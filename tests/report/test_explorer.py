"""The report in real Chromium: the mask explorer's answers, and that nothing leaves the page."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_dataset import KS, make_sample, write_dataset
from made_report import (
    EMOJI,
    FAILURE,
    PROMPTS,
    RTL,
    SCRIPT,
    SIZE,
    write_labeled,
    write_made,
    write_made_audit,
)
from pycocotools import mask as coco

from synthgen.dataset.loader import open_dataset
from synthgen.report.page import write_report
from synthgen.report.serve import make_server

CHROMIUM = Path("/usr/bin/chromium")
sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright's client is absent")
pytestmark = [
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is absent"),
    pytest.mark.timeout(900),
]
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
FLAGS += ("--disable-component-update", "--disable-sync")
HEIGHT, WIDTH = SIZE


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_made(tmp_path_factory.mktemp("report") / "made")
    write_made_audit(root)
    write_report(root)
    return root


@pytest.fixture(scope="module")
def samples(dataset: Path) -> list[dict[str, Any]]:
    return [sample["json"] for sample in open_dataset(dataset)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, dataset: Path) -> Iterator[Any]:
    """The opened report; afterwards: one request, no error on the console, nothing executed."""
    yield from opened(browser, f"file://{dataset}/report/index.html")


def opened(browser: Any, url: str, **options: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1200, "height": 900}, **options)
    page = context.new_page()
    page.set_default_timeout(60_000)
    requests, errors = [], []
    page.on("request", lambda r: None if r.url.startswith("data:") else requests.append(r.url))
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    page.wait_for_selector("canvas[data-ready]")
    yield page
    assert requests == [url]
    assert errors == []
    assert page.evaluate("window.hacked === undefined")
    context.close()


def open_sample(page: Any, index: int, key: str) -> None:
    page.locator(f'#samples [data-sample="{index}"]').click()
    page.wait_for_selector(f'canvas[data-ready="{key}"]')


def hover(page: Any, x: int, y: int) -> None:
    """Put the pointer on the middle of an image pixel."""
    page.locator("#canvas").scroll_into_view_if_needed()
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(
        box["x"] + (x + 0.5) * box["width"] / WIDTH, box["y"] + (y + 0.5) * box["height"] / HEIGHT
    )


def chain(page: Any) -> list[int]:
    script = "nodes => nodes.map(node => +node.dataset.mask)"
    return list(page.locator("#chain [data-mask]").evaluate_all(script))


def decoded(info: dict[str, Any]) -> dict[int, np.ndarray]:
    """Masks by id, decoded by pycocotools alone."""
    return {s["id"]: coco.decode(s["rle"]).astype(bool) for s in info["segments"]}


def chain_by_pycocotools(info: dict[str, Any], x: int, y: int) -> list[int]:
    masks = decoded(info)
    inside = [number for number, mask in masks.items() if mask[y, x]]
    return sorted(inside, key=lambda number: (masks[number].sum(), -number))


def canvas_pixels(page: Any) -> str:
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
    return str(page.evaluate("document.getElementById('canvas').toDataURL()"))


def test_a_hover_answers_with_the_chain_of_masks(page: Any, samples: list[dict[str, Any]]) -> None:
    rng = np.random.default_rng(0)
    for index in (0, 4):
        open_sample(page, index, samples[index]["key"])
        corners = [(0, 0), (WIDTH - 1, HEIGHT - 1)]
        drawn = zip(rng.integers(WIDTH, size=8), rng.integers(HEIGHT, size=8), strict=True)
        for x, y in [*corners, *((int(x), int(y)) for x, y in drawn)]:
            hover(page, x, y)
            page.wait_for_function(
                f"document.getElementById('status').textContent.startsWith('Pixel {x}, {y}:')"
            )
            assert chain(page) == chain_by_pycocotools(samples[index], x, y)
    page.mouse.move(5, 5)
    assert chain(page) == chain_by_pycocotools(samples[4], x, y), "the pointer may go to the list"


def test_each_mask_says_its_k_area_label_and_audit_iou(
    page: Any, samples: list[dict[str, Any]]
) -> None:
    info = samples[0]
    masks = decoded(info)
    seen = [masks[segment["id"]] for segment in info["segments"][::3]]
    hover(page, 20, 20)
    for item in page.locator("#chain [data-mask]").all():
        segment = info["segments"][int(item.get_attribute("data-mask")) - 1]
        mask, text = masks[segment["id"]], item.inner_text()
        for k, cluster in segment["members"]:
            assert f"{k} (cluster {cluster})" in text
        share = float(re.search(r"area ([\d.]+) %", text)[1])
        assert share == pytest.approx(100 * mask.mean(), rel=0.05)
        best = max((mask & other).sum() / (mask | other).sum() for other in seen)
        assert float(re.search(r"audit IoU ([\d.]+)", text)[1]) == pytest.approx(best, abs=0.006)


def test_slider_and_switches_change_the_picture_and_name_the_cluster(page: Any) -> None:
    labels = make_sample(0, PROMPTS[0], SIZE).segmentation.labels
    pictures = [canvas_pixels(page)]
    page.locator("#canvas").click(position={"x": 100, "y": 100})
    x, y = map(int, re.search(r"Pixel (\d+), (\d+)", page.inner_text("#status")).groups())
    pictures.append(canvas_pixels(page))
    for index, k in enumerate(KS):
        page.locator("#k").press("ArrowRight")
        assert page.inner_text("#k-value") == f"k = {k}"
        assert f"at k = {k} in cluster {labels[index][y, x]}" in page.inner_text("#status")
        pictures.append(canvas_pixels(page))
    for selector in ("#overlay", "#boundaries", "[value=pca]", "[value=upsampling]"):
        page.click(selector)
        page.wait_for_timeout(300)
        pictures.append(canvas_pixels(page))
    assert len(set(pictures)) == len(pictures)


def test_without_a_preview_the_hierarchy_alone_is_shown(
    page: Any, samples: list[dict[str, Any]]
) -> None:
    open_sample(page, 3, samples[3]["key"])
    assert page.is_disabled("#k")
    assert page.is_disabled("[value=pca]")
    assert "hierarchy alone" in page.inner_text("#k-note")
    hover(page, 30, 30)
    assert chain(page) == chain_by_pycocotools(samples[3], 30, 30)


def test_hostile_prompts_are_text(page: Any, samples: list[dict[str, Any]]) -> None:
    for index, prompt in enumerate((SCRIPT, RTL, EMOJI)):
        open_sample(page, index, samples[index]["key"])
        assert page.text_content("#prompt") == prompt
        assert page.locator("#samples .tile .prompt").nth(index).text_content() == prompt
    assert page.locator("script:not([type])").count() == 1
    assert page.locator("main img:not([src^='data:image/webp'])").count() == 0


def test_the_keyboard_reaches_everything(page: Any, samples: list[dict[str, Any]]) -> None:
    page.focus("#theme")
    page.keyboard.press("n")  # letters are shortcuts in the explorer alone
    page.focus("#canvas")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowUp")
    x, y = WIDTH // 2 + 1, HEIGHT // 2 - 8
    assert page.inner_text("#status").startswith(f"Pixel {x}, {y}:")
    assert chain(page) == chain_by_pycocotools(samples[0], x, y)
    page.keyboard.press("Enter")
    assert "(fixed)" in page.inner_text("#status")
    page.locator("#chain button").last.focus()
    assert page.locator("#chain [aria-pressed=true]").count() == 1
    assert page.locator("#chain button").last.get_attribute("aria-pressed") == "true"
    page.focus("#canvas")
    page.keyboard.press("Escape")
    assert chain(page) == []
    for key, index in (("PageDown", 1), ("n", 2), ("p", 1), ("PageUp", 0)):
        page.keyboard.press(key)
        page.wait_for_selector(f'canvas[data-ready="{samples[index]["key"]}"]')
    page.focus("#previous")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector(f'canvas[data-ready="{samples[-1]["key"]}"]')


def test_tab_goes_down_the_page_and_names_and_states_are_heard(page: Any) -> None:
    page.focus("#canvas")
    page.keyboard.press("Enter")
    num = page.locator("#chain button").count()
    page.focus("#theme")
    page.focus("#previous")
    outline = "(({outlineStyle: s, outlineWidth: w}) => s === 'solid' && parseFloat(w) >= 2)"
    names = []
    for _ in range(num + 7):
        seen = page.evaluate(f"{outline}(getComputedStyle(document.activeElement))")
        assert seen or page.evaluate("document.activeElement.id") == "previous"
        names.append(
            page.evaluate("(e => e.id || e.dataset.mask || e.value)(document.activeElement)")
        )
        page.keyboard.press("Tab")
    numbers = list(map(str, chain(page)))
    assert names == [
        *("previous", "next", "canvas", *numbers),
        *("image", "overlay", "boundaries", "k"),
    ]
    slider = page.get_by_role("slider", name="Layer", exact=True)
    assert slider.get_attribute("aria-valuetext") == "merged hierarchy"
    slider.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == f"k = {KS[0]}"
    picture = page.get_by_role("group", name="Picture")
    for name in ("image", "PCA colors", "upsampling error"):
        picture.get_by_role("radio", name=name, exact=True).check()
    on_top = page.get_by_role("group", name="On top")
    assert on_top.get_by_role("checkbox", name="boundaries").is_checked()
    on_top.get_by_role("checkbox", name="overlay").check()
    masks = page.get_by_role("list", name="Masks at the star").get_by_role("button")
    assert masks.count() == num > 0
    assert page.get_by_role("button", pressed=True).count() <= 1
    assert page.get_by_role("status").filter(has_text="Pixel").count() == 1
    for chart in page.get_by_role("img").all():
        assert chart.evaluate(
            "e => e.computedName ?? (e.alt || e.getAttribute('aria-labelledby'))"
        )
    page.get_by_role("button", name="Next sample").click()
    page.get_by_text(re.compile("Sample 2 of 5")).wait_for()


def test_classes_are_a_layer_with_names(browser: Any, tmp_path: Path) -> None:
    root = write_labeled(tmp_path / "made")
    write_report(root)
    found = list(open_dataset(root))
    names = {0: "background", 1: "cat", 2: SCRIPT, 255: "undecided"}
    for page in opened(browser, f"file://{root}/report/index.html"):
        for index in (0, 3):  # the last one has no preview
            sample = found[index]
            open_sample(page, index, sample["key"])
            shown = page.locator("#names li").all_inner_texts()
            there = sorted(set(np.unique(sample["semantic"]).tolist()) - {0})
            assert shown == [*(names[i] for i in there), "not found: never"]
            for x, y in ((3, 3), (30, 12), (50, 40)):
                hover(page, x, y)
                name = names[int(sample["semantic"][y, x])]
                expected = f"Pixel {x}, {y}:"
                page.wait_for_function(
                    f"document.getElementById('status').textContent.startsWith('{expected}')"
                )
                assert f"class {name}." in page.inner_text("#status")
            texts = page.locator("#chain [data-mask]").all_inner_texts()
            chosen = [sample["json"]["segments"][number - 1] for number in chain(page)]
            for text, segment in zip(texts, chosen, strict=True):
                score = f"label score {segment['label_score']:.2f}"
                assert (score in text) == bool(segment["label"])
            before = canvas_pixels(page)
            page.locator("#k").press("End")
            assert page.inner_text("#k-value") == "classes"
            assert canvas_pixels(page) != before
            page.locator("#k").press("Home")
        assert page.get_by_role("list", name="Classes in this picture").count() == 1


def test_a_dataset_without_a_sample_says_so(browser: Any, tmp_path: Path) -> None:
    write_dataset(tmp_path / "none", [make_sample(0, "x", SIZE)], 0, failures=[FAILURE])
    write_report(tmp_path / "none")
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"file://{tmp_path}/none/report/index.html")
    assert page.get_by_text("No sample was generated").is_visible()
    assert not page.is_visible("#canvas")
    page.click("#theme")
    assert page.inner_text("#theme") == "Theme: dark"
    assert errors == []
    page.close()


def test_light_and_dark_and_a_narrow_screen(browser: Any, dataset: Path) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    url = f"file://{dataset}/report/index.html"
    for page in opened(browser, url, color_scheme="dark"):
        assert page.evaluate(background) == "rgb(16, 20, 24)"
        page.click("#theme")  # dark
        page.click("#theme")  # light
        assert page.inner_text("#theme") == "Theme: light"
        assert page.evaluate(background) == "rgb(255, 255, 255)"
        page.set_viewport_size({"width": 360, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_served_over_http_it_loads_nothing_else(browser: Any, dataset: Path) -> None:
    with make_server((dataset / "report" / "index.html").read_bytes()) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for page in opened(browser, f"http://127.0.0.1:{server.server_port}/"):
            hover(page, 3, 3)
            assert chain(page)
        server.shutdown()


def test_a_foreign_page_runs_nothing_even_if_it_were_served(browser: Any) -> None:
    """No script, form or picture from elsewhere; cookies of other ports are not its own."""
    foreign = b"""<!doctype html><title>quiet</title><body onload="document.title='loud'">
<script>document.title='loud'; location='http://127.0.0.1:9/?'+document.cookie</script>
<img src="http://127.0.0.1:9/x">
<form action="http://127.0.0.1:9/"><input id="go" type="submit"></form>"""
    with make_server(foreign) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        context = browser.new_context()
        context.add_cookies([{"name": "token", "value": "secret", "url": "http://127.0.0.1/"}])
        page, requests = context.new_page(), []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(url)
        page.locator("#go").click()
        page.wait_for_timeout(300)
        assert page.title() == "quiet"
        assert page.url == url
        assert set(requests) <= {url, "http://127.0.0.1:9/x", f"{url}favicon.ico"}
        with pytest.raises(sync_api.Error, match="sandboxed"):
            page.evaluate("document.cookie")
        context.close()
        server.shutdown()
