"""``synthgen serve`` on a real Prefect server: cron fires, and a verified dataset grows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_server import prefect_server, used
from tiny_run import OVERRIDES, write_prompts

from synthgen import jobs
from synthgen.cli import main
from synthgen.dataset.loader import open_dataset
from synthgen.dataset.verify import verify_dataset
from synthgen.flows.automations import zombie_automations
from synthgen.flows.serve import deployment_name

pytestmark = pytest.mark.timeout(1500)
MAIN = (sys.executable, "-c", "from synthgen.cli import main; main()")
EVERY_MINUTE = "* * * * *"
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a server's clients."""
    with prefect_server(tmp_path_factory.mktemp("prefect")) as environment:
        yield environment


def versions(out: Path) -> list[int]:
    """Planned samples of every published version."""
    found = sorted((out / "manifests").glob("v*.json"))
    return [json.loads(path.read_text())["totals"]["planned"] for path in found]


def test_cron_makes_a_dataset_and_then_extends_it(
    server: dict[str, str], tiny_pipeline: Path, tmp_path: Path
) -> None:
    prompts, out = write_prompts(tmp_path / "prompts.jsonl"), tmp_path / "out"
    settings = [*OVERRIDES, f"model.card={tiny_pipeline}", f"prompts={prompts}"]
    words = [word for setting in settings for word in ("--set", setting)]
    command = [*MAIN, "serve", str(prompts), "--out", str(out), "--cron", EVERY_MINUTE, *words]
    with (tmp_path / "serve.log").open("wb") as log:
        served = subprocess.Popen(
            [*command, "--timezone", "Europe/Berlin", "--extend", "1", "--report"],
            env={**os.environ, **server},
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 900
        while len(versions(out)) < 2:
            said = (tmp_path / "serve.log").read_text()[-3000:]
            assert served.poll() is None, said
            assert "| ERROR" not in said, said
            assert time.monotonic() < deadline, said
            time.sleep(2)
    finally:
        served.send_signal(signal.SIGTERM)
        try:
            served.wait(60)
        except subprocess.TimeoutExpired:
            served.kill()
            served.wait()
    assert versions(out)[:2] == [8, 11]
    assert sum(1 for _ in open_dataset(out, version=2)) == 11
    if not jobs.status(out).finalized:  # a third run had begun
        jobs.extend(out, 1)
    assert verify_dataset(out, deep=True) == []
    with used(server), get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name(f"extend/{deployment_name(str(out))}")
        assert not deployment.paused
        assert [item.active for item in deployment.schedules] == [True]  # pause_on_shutdown=False
        assert deployment.schedules[0].schedule.timezone == "Europe/Berlin"
        assert "Config" in deployment.parameter_openapi_schema["definitions"]
        names = {item.name for item in client.read_automations()}
        assert names == {item.name for item in zombie_automations()}


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run ``synthgen serve scenes``, which must exit with a code; gives the line that it says."""

    def run_refused(code: int, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["synthgen", "serve", "scenes", *words])
        with pytest.raises(SystemExit) as stopped:
            main()
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert stopped.value.code == code, line
        return line

    return run_refused


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (["--cron", "nightly"], "cron must have five fields", 2),
        (["--cron", "61 2 * * *"], "cron must have five fields", 2),
        (["--cron", "0 0 2 * * *"], "cron must have five fields", 2),
        (["--cron", "* * * * * *"], "cron must have five fields", 2),
        (["--cron", "0 2 31 2 *"], "cron must fall due some day", 2),
        (["--cron", EVERY_MINUTE, "--timezone", "Europe/Berlln"], "'Europe/Berlin'?", 2),
        (["--cron", EVERY_MINUTE, "--set", "nun=4"], "nun must be a known setting", 2),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    words: list[str], said: str, code: int, tmp_path: Path, refused: Refused
) -> None:
    assert said in refused(code, "--out", str(tmp_path / "out"), *words)


@pytest.mark.parametrize(
    ("url", "said", "code"),
    [(None, "prefect server start", 2), ("http://u:pw123@127.0.0.1:9/api", "must answer", 1)],
)
def test_without_a_server_it_says_how_to_start_one(
    url: str | None, said: str, code: int, tmp_path: Path, refused: Refused
) -> None:
    with temporary_settings({PREFECT_API_URL: url}):
        line = refused(code, "--out", str(tmp_path / "out"), "--cron", EVERY_MINUTE)
    assert said in line
    assert "pw123" not in line
    assert not (tmp_path / "out").exists()
