"""The doctor: what it says of installations that are well or broken, and of cards on a machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from synthgen.auditing.loading import annotate, load_auditor
from synthgen.cli import main
from synthgen.cli.doctor import settings
from synthgen.config import load
from synthgen.diffusion.backbones import load_backbone
from synthgen.diffusion.generate import generate
from synthgen.jobs.plan import plan
from synthgen.lab.doctor import examine as examine_module
from synthgen.lab.doctor import install
from synthgen.lab.doctor.examine import HEADS, PAGE, draw_captured, draw_plain, examine, prepare
from synthgen.lab.doctor.install import Finding
from synthgen.segmentation.segment import segment_sample

pytestmark = pytest.mark.timeout(900)  # processes of their own, on machines that are busy
ROOT = Path(__file__).parents[2]
SECRET = "hunter2-hunter2-hunter2"
CODE = "from synthgen.cli import main; main()"
NAMES = ["load", "hashes", "heads and grids", "batch sizes", "images", "capture", "masks"]
NAMES += ["contact sheet"]  # and Top-n, where there is an auditor
FEW = ("num=2", "generation.num_inference_steps=3", "auditor.generator.points_per_side=8")


def synthgen(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", CODE, *args],
        capture_output=True,
        text=True,
        timeout=5000,
        env={**os.environ, **environment},
    )


def tables(text: str) -> list[list[list[str]]]:
    """Tables of a page as rows of cells, split where a bar is not escaped."""
    found = re.findall(r"(?:^\|.*\|$\n?)+", text, flags=re.MULTILINE)
    return [
        [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()]
        for block in found
    ]


@pytest.fixture(scope="module")
def examined(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Finding], Path]:
    """The embedded card, seen by the embedded SAM."""
    config, auditor = settings("scenes", FEW, None)
    out = tmp_path_factory.mktemp("doctor")
    told: list[Finding] = []
    card, config = prepare("scenes", None, config, auditor, out)
    found = examine(card, config, auditor, out, told.append, max_batch=2)
    assert found[-len(told) :] == told
    return {finding.name: finding for finding in told}, out


def test_every_step_of_the_embedded_card_is_well(
    examined: tuple[dict[str, Finding], Path],
) -> None:
    """Its contact sheet has a row per image and no blank tile."""
    steps, out = examined
    assert {f.name: (f.status, f.text) for f in steps.values() if f.status != "ok"} == {}
    assert list(steps) == [*NAMES, "Top-n"]
    text = (out / PAGE).read_text()
    assert text.startswith("# synthgen doctor: scenes\n\nAll is well.\n")
    table = next(t for t in tables(text) if t[0][0] == "step")
    assert [row[0] for row in table[2:]] == [*NAMES, "Top-n"]
    assert all(len({len(row) for row in table}) == 1 for table in tables(text))
    assert str(Path.cwd()) not in text
    assert "2 of 2 images bit-identical" in text
    assert [row[0] for row in steps["batch sizes"].table[1:]] == ["1", "2"]
    picture = steps["contact sheet"].picture
    assert f"]({picture})" in text
    pixels = np.asarray(Image.open(out / picture).convert("RGB"))
    assert pixels.shape[1] == 7 * 258
    tops = [14 + row * (256 + 14 + 2) for row in range(2)]
    tiles = [pixels[y : y + 256, x * 258 : x * 258 + 256] for y in tops for x in range(7)]
    assert min(len(np.unique(tile.reshape(-1, 3), axis=0)) for tile in tiles) > 50


def test_heads_are_those_of_the_weights(examined: tuple[dict[str, Finding], Path]) -> None:
    """Reference: output features of the query projections in the file, 16 features per head.

    BL table 1: 195 heads of SD 2.1-base; 8 a layer in SD 1.5.
    """
    steps, _ = examined
    weights = load_backbone(load(overrides=FEW[:2]).model).pipeline.unet.state_dict()
    rows = {n: w.shape[0] for n, w in weights.items() if n.endswith("attn1.to_q.weight")}
    heads = {
        part: sum(n // 16 for name, n in rows.items() if name.startswith(part))
        for part in ("down", "mid", "up")
    }
    assert heads == HEADS["scenes"]
    assert f"{sum(heads.values())} heads" in steps["heads and grids"].text
    table = steps["heads and grids"].table
    assert sum(int(row[3]) for row in table[1:]) == sum(heads.values())
    assert sum(HEADS["sd21"].values()) == 195
    assert HEADS["sd15"] == {"down": 8 * 6, "mid": 8, "up": 8 * 9}


def test_one_changed_pixel_is_not_bit_identity() -> None:
    config = load(overrides=FEW[:2])
    model, groups = load_backbone(config.model), [spec.samples for spec in plan(config)]
    plain, _ = draw_plain(model, config, groups)
    plain[1][5, 7, 1] ^= 1
    _, found = draw_captured(model, config, groups, plain)
    assert found.status == "failed"
    assert found.text.startswith("1 of 2 images bit-identical")


def test_top_n_is_eq_4_and_the_papers_row_is_shown_too(
    examined: tuple[dict[str, Finding], Path],
) -> None:
    """Reference: boolean masks, pair by pair."""
    rows = {row[0]: row[1:] for row in examined[0]["Top-n"].table}
    assert rows["paper: table 7, row 4"][:5] == ("0.85", "0.83", "0.82", "0.74", "0.68")
    config, auditor = settings("scenes", FEW, None)
    (samples,) = (spec.samples for spec in plan(config))
    drawn = [sample.prompt for sample in samples], [sample.seed for sample in samples]
    means = []
    for sample in generate(load_backbone(config.model), *drawn, config.generation, config.capture):
        found = segment_sample(sample, config.segmentation)
        (seen,) = annotate(load_auditor(auditor), ["0"], [sample.image])
        largest = sorted(seen.masks, key=lambda mask: -mask.sum())[:5]
        best = [max((a & b).sum() / (a | b).sum() for b in found.mask_set.masks) for a in largest]
        means.append(np.mean(best))
    assert float(rows["here, our settings"][2]) == pytest.approx(np.mean(means), abs=6e-4)
    assert float(rows["color baseline: k-means on RGB+XY"][2]) > 0


@pytest.mark.slow
def test_foreign_weights_fail_two_steps_and_the_others_go_on(
    tiny_pipeline: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The tiny pipeline as if it were SD 2.1: other hashes and 27 heads, all else works."""
    options = ["--set", "num=1", "--set", "prompts=scenes"]  # 512 px, as the card says
    options += ["--set", "generation.num_inference_steps=1"]
    options += ["--out", str(tmp_path / "out"), "--path", str(tiny_pipeline)]
    monkeypatch.setattr(
        sys, "argv", ["synthgen", "doctor", "--card", "sd21-base", "--run", *options]
    )
    monkeypatch.setenv("S3_SECRET", SECRET)
    with pytest.raises(SystemExit) as stopped:
        main()
    printed = capsys.readouterr()
    assert stopped.value.code == 1
    lines = {line[:16].strip(): line[18:].split(maxsplit=1) for line in printed.out.splitlines()}
    assert {name for name in NAMES if lines[name][0] != "ok"} == {"hashes", "heads and grids"}
    assert "1238522277c4" in lines["hashes"][1]
    assert "27 heads (10 down, 2 mid, 15 up)" in lines["heads and grids"][1]
    text = (tmp_path / "out" / "doctor.md").read_text()
    assert "2 of the lines below need attention" in text
    assert "Top-n" not in text
    assert SECRET not in text + printed.out + printed.err


def test_a_model_that_does_not_load_leaves_a_page_that_says_why(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_pipeline, tmp_path / "broken")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    config, auditor = settings(str(folder), ("num=1", "prompts=scenes"), None)
    assert auditor is None
    card, config = prepare(str(folder), None, config, None, tmp_path / "out")
    steps: list[Finding] = []
    examine(card, config, None, tmp_path / "out", steps.append)
    assert [found.status for found in steps] == ["failed", *["not run"] * (len(NAMES) - 1)]
    assert "safetensors" in steps[0].text
    assert "\n" not in steps[0].text
    assert "needs what failed before" in (tmp_path / "out" / PAGE).read_text()


def test_memory_that_ends_ends_the_probe_and_nothing_else() -> None:
    child = ROOT / "tests/helpers/doctor_children.py"
    done = subprocess.run(
        [sys.executable, str(child)],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    *fitting, last = found["rows"]
    assert last[1] == "out of memory"
    assert [int(row[0]) for row in found["rows"]] == [2**i for i in range(len(fitting) + 1)]
    assert found["text"].startswith(f"{fitting[-1][0]} images at once fit")
    assert found["again"] is True


def test_a_page_is_written_after_every_step_and_errors_stop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hostile text is nobody's markup; secrets and the home folder are left out."""
    hostile = (("a", "b"), ("x | <script>", "`[z](http://w)`"))

    def fail(*_: object) -> None:
        raise RuntimeError(f"first line\nsecond line, password={SECRET} in {Path.home()}/x")

    monkeypatch.setattr(examine_module, "draw_plain", fail)
    monkeypatch.setattr(examine_module, "check_hashes", lambda _: Finding("a|b", table=hostile))
    config, _ = settings("scenes", FEW, None)
    card, config = prepare("scenes", None, config, None, tmp_path)
    pages: list[str] = []
    steps = examine(
        *(card, config, None, tmp_path),
        lambda _: pages.append((tmp_path / PAGE).read_text()),
        max_batch=1,
    )[-len(NAMES) :]
    assert {each.name: each.status for each in steps if each.status != "ok"} == {
        "images": "failed",
        "capture": "failed",
    }
    assert steps[4].text == "first line second line, password=*** in ~/x"
    assert len(pages) == len(NAMES)
    assert r"a\|b" in pages[-1]
    cells = next(table for table in tables(pages[-1]) if table[0] == ["a", "b"])
    assert cells[2] == [r"x \| &lt;script>", r"\`\[z\](http://w)\`"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--card", "sd21-base"], "--run"),
        (["--run", "--card", "sd21-bas"], "sd21-base"),
        (["--run", "--path", "absent"], "--path"),
        (["--run", "--checkpoint", "sam_vit_x.pth"], "sam_vit_x.pth"),
        (["--run", "--set", "auditor.name=scenes-samm"], "scenes-sam"),
        (["--run", "--set", "auditor.name=sam"], "--checkpoint"),
        (["--run", "--card", "sd21-base", "--set", "auditor.sha256=ab"], "--checkpoint"),
        (["--run", "--set", "prompts=absent.jsonl"], "absent.jsonl"),
        (["--run", "--set", "generation.stepz=3"], "generation.stepz"),
        (["--run", "--set", "auditor.names=x"], "auditor.names"),
        (["--run", "--out", "file"], "--out"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    args: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["synthgen", "doctor", *args])
    with pytest.raises(SystemExit) as stopped:
        main()
    printed = capsys.readouterr()
    assert (stopped.value.code, printed.out) == (2, "")
    assert words in printed.err
    assert len(printed.err.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_this_installation_is_healthy_and_no_secret_is_shown() -> None:
    server = f"http://me:{SECRET}@127.0.0.1:4200/api"
    done = synthgen(
        "doctor", PREFECT_API_URL=server, AWS_SECRET_ACCESS_KEY=SECRET, HF_HUB_OFFLINE="1"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert "127.0.0.1:4200/api" in done.stdout
    assert len(done.stdout.splitlines()) == 7
    assert "the hub is not asked (HF_HUB_OFFLINE)" in done.stdout


def test_a_broken_installation_is_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "prefect.py").write_text("raise ImportError('no such thing')\n")
    done = synthgen("doctor", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"Prefect  failed +ImportError: no such thing", done.stdout)
    assert "Traceback" not in done.stderr


def test_the_caps_of_the_package_itself_are_checked() -> None:
    """The two known traps, in the metadata of this installation."""
    kept = re.compile(r"fastapi|sqlalchemy|prefect-ray|ruff")
    needs = [text for text in metadata.requires("synthgen") or () if kept.match(text)]

    def failing(**versions: str) -> list[str]:
        return sorted(
            install.unmet(needs, {k.replace("_", "-"): v for k, v in versions.items()}.get)
        )

    found = failing(fastapi="0.163.0", sqlalchemy="2.1.0", prefect_ray="0.5.0", ruff="0.1")
    assert [line.split(" ")[0] for line in found] == ["fastapi", "prefect-ray", "sqlalchemy"]
    assert "no Prefect server starts" in found[0]
    assert "cron schedules never fire" in found[2]
    assert [line.split(" ")[0] for line in failing()] == ["fastapi", "sqlalchemy"]
    assert failing(fastapi="0.150.0", sqlalchemy="2.0.40") == []


def test_a_flipped_byte_in_embedded_weights_is_found(tmp_path: Path) -> None:
    for name in install.WEIGHTS:
        shutil.copytree(install.SHIPPED.parent / name, tmp_path / name)
    file = tmp_path / "weights_sam" / "sam.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert install.check_weights(install.WEIGHTS[:1], tmp_path).status == "ok"
    with pytest.raises(ValueError, match=r"sam\.safetensors"):
        install.check_weights(install.WEIGHTS, tmp_path)


def test_disk_and_variables(tmp_path: Path) -> None:
    shown = install.check_disk({"here": tmp_path})
    free = shutil.disk_usage(tmp_path).free
    assert shown.status == ("failed" if free < 1e9 else "note" if free < 10e9 else "ok")
    assert float(shown.text.split()[0]) == pytest.approx(free / 1e9, rel=0.05)
    loud = install.check_environment({"DO_NOT_TRACK": "0", "X_TOKEN": SECRET})
    assert loud.status == "note"
    assert loud.text == "weights may be fetched; telemetry is on by DO_NOT_TRACK"
    quiet = install.check_environment({"PREFECT_SERVER_ANALYTICS_ENABLED": "FALSE"})
    assert quiet.status == "ok"
    assert install.check_environment({"PREFECT_SERVER_ANALYTICS_ENABLED": "1"}).status == "note"


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_full_size_weights_are_examined_to_the_end(tmp_path: Path) -> None:
    """Random SD 2.1-base and SAM ViT-B: hashes must fail, nothing else may."""
    from segment_anything import sam_model_registry
    from test_full_size import TOKENIZER, random_sd21

    if not TOKENIZER.is_dir():
        pytest.skip(f"needs the CLIP tokenizer in {TOKENIZER}")
    random_sd21().pipeline.save_pretrained(tmp_path / "sd21", safe_serialization=True)
    torch.manual_seed(0)
    save_file(sam_model_registry["vit_b"]().state_dict(), tmp_path / "sam.safetensors")
    generator = {"points_per_side": 2, "pred_iou_thresh": 0, "stability_score_thresh": 0}
    sets = [f"auditor.generator.{name}={value}" for name, value in generator.items()]
    sets += ["generation.num_inference_steps=2"]
    done = synthgen(
        *("doctor", "--run", "--card", "sd21-base", "--path", str(tmp_path / "sd21")),
        *("--checkpoint", str(tmp_path / "sam.safetensors"), "--set", "num=1"),
        *("--out", str(tmp_path / "out"), *(word for text in sets for word in ("--set", text))),
    )
    text = (tmp_path / "out" / "doctor.md").read_text()
    print(done.stderr, text, sep="\n")
    assert done.returncode == 1, done.stderr
    steps = {row[0]: row[1:] for row in next(t for t in tables(text) if t[0][0] == "step")[2:]}
    assert {name for name, row in steps.items() if row[0] != "ok"} == {"hashes"}
    assert "195 heads (70 down, 20 mid, 105 up) in 16 layers; 46." in steps["heads and grids"][1]
    assert "1 of 1 images bit-identical" in steps["capture"][1]
    assert "paper: table 7, row 4" in text
