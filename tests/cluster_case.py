"""Servers for tests of runs on several machines: PostgreSQL and one that speaks the protocol of S3, on the loopback."""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

PASSWORD = "hidden-0c1ffee5"
BUCKET = "runs"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def postgres_program(name: str) -> Path | None:
    found = shutil.which(name)
    if found is not None:
        return Path(found)
    return next(iter(sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)), None)


def why_no_postgres() -> str:
    """Why PostgreSQL cannot be started here, "" where it can."""
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed: pip install 'slimbit[cluster]'"
    missing = [name for name in ("initdb", "postgres") if postgres_program(name) is None]
    return f"{missing[0]} is not installed (Debian: postgresql)" if missing else ""


class Postgres:
    """A server of its own on a free port of the loopback; it refuses to run as root, so root starts it as another user.

    Durable writes are off: tests kill workers and the server's process, never the machine.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self._as: dict[str, str] = {}
        if os.getuid() == 0:
            names = {entry.pw_name for entry in pwd.getpwall()}
            self._as = {"user": "postgres" if "postgres" in names else "nobody"}
            os.chown(folder, pwd.getpwnam(self._as["user"]).pw_uid, -1)
        secret = folder / "secret"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        self._call("initdb", "-D", f"{folder}/data", "-U", "slimbit", "-A", "scram-sha-256", f"--pwfile={secret}",
                   "--no-sync", "-E", "UTF8", "--locale=C")  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def _call(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(postgres_program(name)), *arguments], capture_output=True, cwd=self.folder, check=False, **self._as
        )
        assert done.returncode == 0, done.stderr.decode()

    @property
    def url(self) -> str:
        return f"postgresql://slimbit:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(postgres_program("postgres")), "-D", f"{self.folder}/data", "-p", str(self.port), "-k",
                 str(self.folder), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "max_connections=300"],
                stdout=log, stderr=log, cwd=self.folder, **self._as,
            )  # fmt: skip
        self.wait()

    def wait(self) -> None:
        import psycopg

        deadline = time.monotonic() + 300  # a busy machine is no failure
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=5).close()
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, (self.folder / "log").read_text()
                time.sleep(0.05)
            else:
                return

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """Stop, by default as in a crash: connections end in the middle of whatever they are at."""
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(60)


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    folder = Path(tempfile.mkdtemp(prefix="slimbit-postgres-"))
    folder.chmod(0o755)
    server = Postgres(folder)
    try:
        yield server
    finally:
        server.stop()  # an orderly end would first write all of it to the disk
        shutil.rmtree(folder, ignore_errors=True)


def new_database(server: Postgres) -> str:
    """Address of an empty database."""
    import psycopg

    name = f"db_{secrets.token_hex(6)}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{server.url.rsplit('/', 1)[0]}/{name}"


def why_no_s3() -> str:
    """Why an S3-compatible server cannot be started here, "" where it can."""
    for name in ("boto3", "moto", "flask", "flask_cors"):
        try:
            __import__(name)
        except ImportError:
            return f"{name} is not installed: pip install boto3 'moto[s3]' flask flask-cors"
    return ""


@contextlib.contextmanager
def s3(refused: float = 0.0) -> Iterator[dict[str, str]]:
    """A server with one bucket; yields the variables of the environment by which boto3 finds it.

    Args:
        refused: Share of the requests that it answers with "slow down".
    """
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    script = str(Path(__file__).parent / "chaos" / "unsteady_s3.py")
    process = subprocess.Popen(
        [sys.executable, script, str(port), str(refused)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    found = {
        "AWS_ENDPOINT_URL_S3": address, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "hidden-5ec2e7",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    try:
        deadline = time.monotonic() + 300  # a busy machine is no failure
        while True:
            try:
                urlopen(f"{address}/moto-api/data.json", timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        import boto3

        boto3.client(
            "s3", endpoint_url=address, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
        ).create_bucket(Bucket=BUCKET)
        yield found
    finally:
        process.terminate()
        process.wait(30)
