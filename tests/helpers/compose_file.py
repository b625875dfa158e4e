"""docker/compose.yaml as plain values, and its services as processes of this machine."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

DOCKER = Path(__file__).parents[2] / "docker"
COMPOSE = DOCKER / "compose.yaml"
VARIABLE = re.compile(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}")
HEALTHY_SECONDS = 600
SECRETS = (
    *("POSTGRES_PASSWORD", "PREFECT_AUTH_STRING"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
)
"""What ``.env`` must hold."""
SHIPPED = "config: {prompts: scenes, num: 64}"
SMALL = "config: {prompts: scenes, num: 4, dataset: {shard_size: 2}}"


@dataclass(frozen=True, slots=True)
class Service:
    """One service: what Docker would run, and where."""

    name: str
    image: str
    command: tuple[str, ...]
    environment: dict[str, str]
    mounts: dict[str, str]
    """Path in the container to its source: a volume's name or a file."""
    health: tuple[str, ...]
    after: dict[str, str]
    """Service to the condition that it must meet before this one is started."""
    tree: dict[str, Any] = field(repr=False)


def read_services(variables: Mapping[str, str], file: Path = COMPOSE) -> list[Service]:
    """The services in the order in which they may be started.

    Args:
        variables: The environment, or what ``.env`` holds.
        file: The compose file.

    Raises:
        KeyError: If a variable is required and missing.
    """
    tree = yaml.safe_load(interpolate(file.read_text(), variables))
    found = {name: _service(name, part, tree) for name, part in tree["services"].items()}
    order: list[Service] = []
    while found:
        free = [item for item in found.values() if not set(item.after) & set(found)]
        assert free, f"services must not wait for each other: {list(found)}"
        order += free
        found = {name: item for name, item in found.items() if item not in free}
    return order


def interpolate(text: str, variables: Mapping[str, str]) -> str:
    """Fill in ``${NAME}``, ``${NAME:-default}`` and ``${NAME:?message}`` as Compose does."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if variables.get(name):
            return variables[name]
        if kind == ":?":
            raise KeyError(rest)
        return rest or ""

    return VARIABLE.sub(value, text)


def image_environment(dockerfile: Path = DOCKER / "Dockerfile") -> dict[str, str]:
    """The ``ENV`` block of the image's base stage."""
    base = dockerfile.read_text().split("\nFROM ")[1]
    lines = re.findall(r"^(?:ENV| {3}) (\w+)=(\S+)", base, flags=re.MULTILINE)
    return dict(lines)


def _service(name: str, part: dict[str, Any], tree: dict[str, Any]) -> Service:
    mounts = dict(reversed(item.split(":")[:2]) for item in part.get("volumes", []))
    for item in part.get("configs", []):
        mounts[item["target"]] = tree["configs"][item["source"]]["file"]
    return Service(
        name=name,
        image=part["image"],
        command=tuple(part["command"]),
        environment=dict(part["environment"]),
        mounts=mounts,
        health=tuple(part.get("healthcheck", {}).get("test", ())),
        after={key: item["condition"] for key, item in part.get("depends_on", {}).items()},
        tree=part,
    )


@dataclass
class Machine:
    """Where services run as processes: ports and folders of containers are ours.

    Args:
        folder: For logs, homes and volumes.
        names: Of the services: host names in their network.
        ports: Port in a container to port of 127.0.0.1.
        path: What ``PATH`` is to them.
    """

    folder: Path
    names: Sequence[str]
    ports: dict[str, int]
    path: str
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def root(self, service: Service) -> Path:
        """The folder that stands for the file system of a service, with its volumes and files."""
        root = self.folder / "roots" / service.name
        for inner in ("home/synthgen", "data"):
            (root / inner).mkdir(parents=True, exist_ok=True)
        for target, source in service.mounts.items():
            inside = root / target.removeprefix("/")
            if (DOCKER / source).is_file():
                inside.parent.mkdir(parents=True, exist_ok=True)
                inside.write_bytes((DOCKER / source).read_bytes())
            else:
                inside.mkdir(parents=True, exist_ok=True)
        return root

    def local(self, text: str, root: Path) -> str:
        """A word of a command, or a variable's value, as it must be outside of containers."""
        hosts = "|".join([*self.names, r"127\.0\.0\.1", r"0\.0\.0\.0"])
        for port, ours in self.ports.items():
            text = re.sub(rf"\b(?:{hosts}):{port}\b", f"127.0.0.1:{ours}", text)
        if text in self.ports:
            return str(self.ports[text])
        if text == "0.0.0.0":
            return "127.0.0.1"
        inside = text.startswith("/") and (root / text.split("/")[1]).exists()
        return f"{root}{text}" if inside else text

    def prepare(
        self, service: Service, command: Sequence[str]
    ) -> tuple[list[str], dict[str, str]]:
        """Words and environment of a command in a service; nothing of our own environment."""
        root = self.root(service)
        own = image_environment() if service.image.startswith("synthgen:") else {}
        variables = {"HOME": "/home/synthgen", **own, **service.environment}
        there = {name: self.local(value, root) for name, value in variables.items()}
        fixed = {"PATH": self.path, "TMPDIR": f"{root}/data", "OMP_NUM_THREADS": "1"}
        return [self.local(word, root) for word in command], {**there, **fixed}

    def run(self, service: Service, *command: str) -> str:
        """``docker compose run --rm SERVICE COMMAND``: what it says."""
        words, environment = self.prepare(service, command or service.command)
        done = subprocess.run(
            words, env=environment, cwd=self.root(service) / "data", capture_output=True, text=True
        )
        said = done.stdout + done.stderr
        (self.folder / f"{service.name}.log").open("a").write(said)
        assert done.returncode == 0, said[-3000:]
        return said

    def start(self, service: Service) -> None:
        """``docker compose up SERVICE``, until its health check is content."""
        words, environment = self.prepare(service, (*entry_point(service), *service.command))
        with (self.folder / f"{service.name}.log").open("ab") as log:
            self.running[service.name] = subprocess.Popen(
                words, env=environment, cwd=self.root(service) / "data", stdout=log, stderr=log
            )
        self.wait_until_healthy(service)

    def wait_until_healthy(self, service: Service) -> None:
        """Ask a service's own health check until it is content."""
        words, environment = self.prepare(service, service.health[1:])
        assert service.health[0] == "CMD"
        wait_for(
            lambda: subprocess.run(words, env=environment, capture_output=True).returncode == 0,
            lambda: self.said(service.name),
            HEALTHY_SECONDS,
        )

    def said(self, name: str) -> str:
        """The end of a service's log; the service must still run."""
        text = (self.folder / f"{name}.log").read_text()[-3000:]
        process = self.running[name]
        assert process.poll() is None, f"{name} ended with {process.returncode}: {text}"
        assert "| ERROR   | Flow run" not in text, text
        return text

    @contextmanager
    def stopped_at_the_end(self) -> Iterator[Machine]:
        """``docker compose down``: the last one started is the first to be stopped."""
        try:
            yield self
        finally:
            for process in reversed(self.running.values()):
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def entry_point(service: Service) -> tuple[str, ...]:
    """What an image puts before the command; ours puts nothing there."""
    return ("rclone",) if service.image.startswith("rclone/rclone:") else ()


def every_minute(file: Path) -> Path:
    """Write the shipped deployments as a user would edit them: small, and fired every minute."""
    text = (DOCKER.parent / "synthgen/flows/prefect.yaml").read_text()
    text = text.replace('"0 22 * * *"', '"* * * * *"').replace(SHIPPED, SMALL)
    assert text.count(SMALL) == text.count('"* * * * *"') == 2
    file.write_text(text)
    return file


def processes_of(folder: Path) -> list[psutil.Process]:
    """Processes whose environment names a folder of ours."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if str(folder) in " ".join(process.environ().values()):
                found.append(process)
    return found


def end_processes(folder: Path, seconds: float = 30) -> None:
    """Wait for processes of ours, then kill: Prefect's clients wait for a server that is gone."""
    for process in psutil.wait_procs(processes_of(folder), timeout=seconds)[1]:
        process.kill()


def wait_for(condition: Callable[[], bool], said: Callable[[], str], seconds: float) -> None:
    """Return once a condition is true, and say what a service said if it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, said()
        said()
        time.sleep(2)
