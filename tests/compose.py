"""docker-compose.yml, read as Compose reads it, and its services as processes of this machine."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from postgres import Cluster, binaries, free_port
from processes import until

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docker-compose.yml"
VARIABLE = re.compile(r"\$\{(?P<name>\w+):-(?P<default>[^}]*)\}")
PROGRAMS = {
    "entrypoint": [str(ROOT / "deploy" / "entrypoint")],
    "make-accounts": [sys.executable, str(ROOT / "deploy" / "make-accounts")],
    "python": [sys.executable],
    "tuner": [sys.executable, "-m", "tuner"],
    "mlflow": [sys.executable, "-m", "mlflow"],
    "optuna-dashboard": [sys.executable, "-m", "optuna_dashboard._cli"],
    "pg_isready": [str(binaries() / "pg_isready")],
}
"""What stands for a program of the images here."""


def read() -> dict[str, Any]:
    """Read the file, every variable at its default."""
    text = VARIABLE.sub(lambda found: found["default"], FILE.read_text())
    found = yaml.safe_load(text)
    assert isinstance(found, dict)
    return found


def image_environment() -> dict[str, str]:
    """Read what the Dockerfile's last stage sets for every process, but its own PATH."""
    last = (ROOT / "Dockerfile").read_text().rpartition("\nFROM ")[2].replace("\\\n", " ")
    words = [w for line in last.splitlines() if line.startswith("ENV ") for w in shlex.split(line)]
    return {
        name: value
        for name, _, value in (word.partition("=") for word in words[1:])
        if name != "PATH"
    }


@dataclass
class Service:
    """A process that stands for a container."""

    name: str
    process: subprocess.Popen[bytes]
    places: Mapping[str, str]  # what of the file is something else here
    log: Path
    cmdline: list[str] = field(default_factory=list)  # as the system has them, once it answers
    environ: dict[str, str] = field(default_factory=dict)


class Stack:
    """The services of the file, started in the order and under the conditions that it says."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder = folder
        self.cluster = cluster
        self.file = read()
        self.running: list[Service] = []
        self.port, self.dashboard = free_port(), free_port()  # of MLflow's server, of Optuna's
        self.places = {
            "/run/secrets/": f"{folder}/secrets/",
            "/var/lib/tuner": f"{folder}/work",
            "/var/lib/mlflow": f"{folder}/mlflow",
            "/etc/tuner": f"{folder}/etc",
            "@postgres/": f"@127.0.0.1:{cluster.port}/",
            "http://mlflow:5000": f"http://127.0.0.1:{self.port}",
            "127.0.0.1:5000": f"127.0.0.1:{self.port}",
            "--port=5000": f"--port={self.port}",
            "127.0.0.1:8080": f"127.0.0.1:{self.dashboard}",
            "--port=8080": f"--port={self.dashboard}",
            "0.0.0.0": "127.0.0.1",
        }
        self._prepare()

    def _prepare(self) -> None:
        """Do what the engine and the image of PostgreSQL do: secrets, volumes, a first database."""
        subprocess.run([ROOT / "deploy" / "make-secrets"], cwd=self.folder, check=True)
        for name in ("work", "mlflow", "etc", "app", "tmp"):
            (self.folder / name).mkdir()
        (self.folder / "app" / "studies").symlink_to(ROOT / "studies")
        accounts = (ROOT / "deploy" / "basic_auth.ini").read_text()
        (self.folder / "etc" / "basic_auth.ini").write_text(put(accounts, self.places))
        first = self.file["services"]["postgres"]["environment"]
        password = Path(put(first["POSTGRES_PASSWORD_FILE"], self.places)).read_text()
        user, database = first["POSTGRES_USER"], first["POSTGRES_DB"]
        self.cluster.execute(f"CREATE ROLE {user} SUPERUSER LOGIN PASSWORD '{password}'")
        self.cluster.execute(f"CREATE DATABASE {database} OWNER {user}")
        self.cluster.require_passwords()

    @property
    def secrets(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in (self.folder / "secrets").iterdir()}

    # --- services

    def up(self, *names: str) -> None:
        """Start services and what they depend on, as often as they have replicas."""
        for name in names:
            if name == "postgres" or any(one.name == name for one in self.running):
                continue
            service = self.file["services"][name]
            for other, how in service.get("depends_on", {}).items():
                self.up(other)
                self._wait(other, how["condition"])
            for _ in range(int(service.get("deploy", {}).get("replicas", 1))):
                self.running.append(self._start(name))

    def _start(self, name: str) -> Service:
        places = self.places | {"9464": str(free_port())}
        log = self.folder / f"{name}-{len(self.running)}.log"
        service = self.file["services"][name]
        return Service(name, self._run(name, service["command"], places, log), places, log)

    def _run(
        self, name: str, words: list[str], places: Mapping[str, str], log: Path
    ) -> subprocess.Popen[bytes]:
        with log.open("ab") as out:
            return subprocess.Popen(
                here(["entrypoint", *words], places),
                cwd=self.folder / "app",
                env=self.environment(name, places),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def environment(self, name: str, places: Mapping[str, str]) -> dict[str, str]:
        """Give a container's environment, and what it takes for a process to be our code."""
        of_image = {
            k: put(v, {"/tmp": f"{self.folder}/tmp"}) for k, v in image_environment().items()
        }
        of_file = self.file["services"][name].get("environment", {})
        system = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        return system | of_image | {key: put(str(value), places) for key, value in of_file.items()}

    def tuner(self, name: str, *arguments: str) -> tuple[int, str]:
        """Do what `docker compose run NAME tuner ...` does; give the exit code and the output."""
        log = self.folder / f"run-{time.monotonic_ns()}.log"
        code = self._run(name, ["tuner", *arguments], self.places, log).wait(timeout=300)
        return code, log.read_text()

    # --- health

    def _wait(self, name: str, condition: str) -> None:
        if condition == "service_completed_successfully":
            service = next(one for one in self.running if one.name == name)
            assert service.process.wait(timeout=300) == 0, service.log.read_text()
        else:
            assert condition == "service_healthy"
            until(lambda: self.healthy(name), f"{name} to be healthy", 300)

    def healthy(self, name: str) -> bool:
        """Make the health check of every container of a service, as the engine would."""
        words = self.file["services"][name]["healthcheck"]["test"]
        assert words[0] == "CMD"
        at = [one.places for one in self.running if one.name == name] or [self.places]
        return all(
            subprocess.run(
                here(words[1:], places),
                check=False,
                cwd=self.folder / "app",
                env=self.environment(name, places) | {"PGPORT": str(self.cluster.port)},
                capture_output=True,
                timeout=30,
            ).returncode
            == 0
            for places in at
        )

    def look(self) -> None:
        """Note what the system says of the services that run."""
        for service in self.running:
            if service.process.poll() is None:
                process = psutil.Process(service.process.pid)
                service.cmdline, service.environ = process.cmdline(), process.environ()

    def down(self) -> dict[str, list[int]]:
        """Stop the services, those that depend on others first; give their exit codes."""
        codes: dict[str, list[int]] = {}
        for service in reversed(self.running):
            if service.process.poll() is None:
                service.process.terminate()
                codes.setdefault(service.name, []).append(service.process.wait(timeout=300))
        return codes

    def kill(self) -> None:
        """End what is left, with its children."""
        for service in self.running:
            try:
                os.killpg(service.process.pid, 9)
            except ProcessLookupError:
                continue
            service.process.wait()


def put(text: str, places: Mapping[str, str]) -> str:
    """Replace what is elsewhere here; in one go, so that nothing is replaced twice."""
    pattern = "|".join(re.escape(one) for one in sorted(places, key=len, reverse=True))
    return re.sub(pattern, lambda found: places[found[0]], text)


def here(words: list[str], places: Mapping[str, str]) -> list[str]:
    """Give a command of a container as one of this machine."""
    started = [PROGRAMS.get(word, [word]) for word in words[:2]]
    return [part for word in started for part in word] + [put(word, places) for word in words[2:]]
