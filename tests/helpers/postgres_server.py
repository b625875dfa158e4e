"""A real Postgres server of this machine; run by another user when we are root, which it asks."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from s3_server import free_port

READY_SECONDS = 120


def binaries() -> Path | None:
    """The folder of ``initdb`` and ``postgres``, which Debian does not put on the path."""
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return folders[-1].parent if folders else None


def major_version() -> int:
    """Such as 15."""
    said = subprocess.run([tool("postgres"), "--version"], capture_output=True, text=True)
    return int(said.stdout.split()[2].split(".")[0])


def tool(name: str) -> str:
    """The path of a program of Postgres; ``pg_isready`` may be beside others than ``initdb``."""
    folder = binaries()
    assert folder is not None
    beside = [folder, *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    return next(str(path / name) for path in beside if (path / name).exists())


def account() -> str | None:
    """The user that Postgres runs as; None: ourselves."""
    return "nobody" if os.geteuid() == 0 else None


def start(
    command: Sequence[str], environment: Mapping[str, str], log: IO[bytes], **options: Any
) -> subprocess.Popen[bytes]:
    """Start a program of Postgres as its user, who sees no groups of ours."""
    if account() is not None:
        options = {"user": account(), "group": "nogroup", "extra_groups": [], **options}
    return subprocess.Popen(
        command, env=dict(environment), cwd="/", stdout=log, stderr=log, **options
    )


@contextmanager
def cluster(user: str, password: str, database: str) -> Iterator[tuple[Path, int]]:
    """What the image's entry point makes: a cluster with a user and a database.

    Its folder is none of pytest's, which only their owner may enter. It goes with the block.

    Yields:
        The folder of the data, and the port that its configuration names.
    """
    with tempfile.TemporaryDirectory(prefix="synthgen-postgres-", ignore_cleanup_errors=True) as f:
        folder, port = Path(f), free_port()
        name = account()
        if name is not None:
            os.chown(folder, pwd.getpwnam(name).pw_uid, -1)
        words = folder / "password"
        words.write_text(password)
        words.chmod(0o644)  # the folder itself is closed
        data = folder / "data"
        options = ["--auth", "scram-sha-256", "--no-sync", "--encoding", "UTF8", "--locale", "C"]
        login = ["--username", user, "--pwfile", str(words)]
        _finish([tool("initdb"), "--pgdata", str(data), *login, *options], folder)
        words.unlink()
        with (data / "postgresql.conf").open("a") as stream:
            stream.write(
                f"port = {port}\nlisten_addresses = '127.0.0.1'\n"
                f"unix_socket_directories = '{folder}'\n"
            )
        single = [tool("postgres"), "--single", "-D", str(data), "postgres"]
        _finish(single, folder, said=f'CREATE DATABASE "{database}";\n')
        yield data, port


@contextmanager
def postgres_server(
    password: str = "secret", options: Sequence[str] = ()
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run a server until the block ends.

    Yields:
        The URL that Prefect takes, and the process.
    """
    with cluster("prefect", password, "prefect") as (data, port):
        log = (data.parent / "log").open("wb")
        command = [tool("postgres"), "-D", str(data), *options]
        with log:
            server = start(command, {"PATH": os.environ["PATH"]}, log)
            try:
                wait_until_ready(port, server)
                url = f"postgresql+asyncpg://prefect:{password}@127.0.0.1:{port}/prefect"
                yield url, server
            finally:
                server.terminate()
                server.wait(60)


def wait_until_ready(port: int, server: subprocess.Popen[bytes]) -> None:
    """Return once a server takes connections."""
    deadline = time.monotonic() + READY_SECONDS
    ask = [tool("pg_isready"), "--host", "127.0.0.1", "--port", str(port), "--quiet"]
    while subprocess.run(ask).returncode:
        assert server.poll() is None, "Postgres ended"
        assert time.monotonic() < deadline, "Postgres must be ready"
        time.sleep(0.5)


def _finish(command: Sequence[str], folder: Path, said: str = "") -> None:
    """Run a program of Postgres to its end."""
    with tempfile.TemporaryFile() as log, tempfile.TemporaryFile() as words:
        words.write(said.encode())
        words.seek(0)
        environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
        code = start(command, environment, log, stdin=words).wait(READY_SECONDS)
        log.seek(0)
        assert code == 0, log.read().decode()[-2000:]
