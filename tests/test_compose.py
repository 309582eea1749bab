"""docker-compose.yml: what it names is there, and what it says works, started as processes."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import compose
import mlflow.environment_variables
import postgres
import pytest
import yaml
from compose import ROOT, Service, Stack, here, put
from processes import until

from tuner.cli.app import cli

FILE = compose.read()
SERVICES = FILE["services"]
OURS = {name: one for name, one in SERVICES.items() if one["image"].startswith("tuner:")}
ONE_SHOT = {"migrate", "accounts", "administrator"}
TEXT = compose.FILE.read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def environment(name: str) -> dict[str, str]:
    return {key: str(value) for key, value in SERVICES[name].get("environment", {}).items()}


# --- what is named is there


@pytest.mark.longer
def test_the_file_is_of_the_schema_of_compose():
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*check, compose.FILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", ["secrets", "networks", "volumes"])
def test_what_services_use_is_declared_and_the_other_way_round(kind):
    used = {one.partition(":")[0] for service in SERVICES.values() for one in service.get(kind, ())}
    assert {one for one in used if not one.startswith((".", "/"))} == set(FILE[kind])


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_waits_for_services_in_a_way_that_they_can_fulfil(name):
    for other, how in SERVICES[name].get("depends_on", {}).items():
        if how["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[other]
        else:
            assert how["condition"] == "service_completed_successfully"
            assert SERVICES[other]["restart"].startswith("on-failure"), "else it never completes"
        assert "profiles" not in SERVICES[other]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_the_secrets_that_it_reads_and_no_other(name):
    said = json.dumps([SERVICES[name].get("command"), environment(name)])
    assert set(re.findall(r"/run/secrets/(\w+)", said)) == set(SERVICES[name].get("secrets", ()))


def test_a_secret_is_known_to_one_service_and_to_those_that_set_it():
    """The owner's and the administrator's only to what runs no code of studies."""
    holders: dict[str, set[str]] = {}
    for name, service in SERVICES.items():
        for secret in service.get("secrets", ()):
            holders.setdefault(secret, set()).add(name)
    one = {secret: sorted(names - ONE_SHOT) for secret, names in holders.items()}
    assert one == {
        "database_owner": ["postgres"],
        "database_worker": ["worker", "worker-gpu"],
        "database_scheduler": ["scheduler"],
        "database_recorder": ["recorder"],
        "database_mlflow": ["mlflow"],
        "database_dashboard": ["dashboard"],
        "mlflow_admin": ["mlflow"],
        "mlflow_recorder": ["recorder"],
        "mlflow_scheduler": ["scheduler"],
        "mlflow_session": ["mlflow"],
    }
    for name in ONE_SHOT:
        assert not any("studies" in one for one in SERVICES[name].get("volumes", ()))


def test_secrets_are_what_the_script_makes_and_only_we_can_read_them(tmp_path):
    script = ROOT / "deploy" / "make-secrets"
    subprocess.run([script], cwd=tmp_path, check=True)
    made = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert {one["file"] for one in FILE["secrets"].values()} == {f"./secrets/{n}" for n in made}
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in made.values())
    assert len({*made.values()}) == len(made)
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    subprocess.run([script], cwd=tmp_path, check=True)
    again = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert again == made, "what is there stays"
    assert "secrets/" in (ROOT / ".gitignore").read_text().splitlines()


ENTRYPOINT = (ROOT / "deploy" / "entrypoint").read_text()
OF_POSTGRES = {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD_FILE"}
OF_MLFLOW = {*vars(mlflow.environment_variables), "MLFLOW_BACKEND_STORE_URI"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_variable_is_one_that_somebody_reads(name):
    """Ours are in the README, MLflow's in MLflow; a file's name is read by the entrypoint."""
    readme = (ROOT / "README.md").read_text()
    for key in environment(name):
        if name == "postgres":
            assert key in OF_POSTGRES
        elif key.endswith("_FILE"):
            assert re.search(rf"\b{key.removesuffix('_FILE')}\b", ENTRYPOINT)
        elif key.startswith("MLFLOW_"):
            assert key in OF_MLFLOW
        else:
            assert f"`{key}`" in readme


@pytest.mark.parametrize("name", OURS)
def test_a_command_is_one_that_its_program_understands(name):
    program, *words = SERVICES[name]["command"]
    if program == "tuner" and words != ["scheduler"]:
        command = cli
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        command.make_context(name, words)
    else:
        assert program in {"tuner", "mlflow", "optuna-dashboard", "make-accounts"}  # started below


def test_files_that_the_image_copies_are_there_and_in_its_context():
    said = (ROOT / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", said, re.MULTILINE)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for path in " ".join(copied).split():
        assert (ROOT / path).exists()
        assert f"!{path}" in ignored
    (extras,) = re.findall(r"'\.\[(.+)\]'", said)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    for script in ("entrypoint", "make-accounts"):
        assert os.access(ROOT / "deploy" / script, os.X_OK)


# --- what it must not be


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_may_do_no_more_than_it_must(name):
    service = SERVICES[name]
    assert service["init"] is True
    assert service["read_only"] is True
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"]), "nobody is root"
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert "stop_grace_period" in service
    assert ("healthcheck" in service) == (name not in ONE_SHOT)
    for port in service.get("ports", ()):
        assert port.startswith("127.0.0.1:")
    if name not in {"mlflow", "dashboard"}:
        assert service["networks"] == ["inside"], "what trains cannot reach the internet"


def test_images_are_pinned():
    version = PROJECT["version"]
    assert {one["image"] for one in OURS.values()} == {f"tuner:{version}", f"tuner:{version}-cuda"}
    (theirs,) = {one["image"] for name, one in SERVICES.items() if name not in OURS}
    pinned = r"\S+:\d+\.\d+[\w.]*-bookworm@sha256:[0-9a-f]{64}"
    assert re.fullmatch(pinned, theirs)
    (base,) = re.findall(r"^ARG PYTHON=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert re.fullmatch(pinned.replace("-bookworm", "-slim-bookworm"), base)


def test_no_password_and_no_variable_without_a_default_is_in_the_file():
    assert not re.search(r"://[^/@\s]*:[^/@\s]*@", TEXT)
    assert not re.search(r"(?i)(password|secret|key):\s*\S", re.sub(r"/run/secrets/\S+", "", TEXT))
    assert len(re.findall(r"\$", TEXT)) == len(compose.VARIABLE.findall(TEXT))
    operations = (ROOT / "docs" / "operations.md").read_text()
    for name, _ in compose.VARIABLE.findall(TEXT):
        assert f"`{name}`" in operations


def test_the_documented_override_mounts_the_code_of_each_person_where_its_prefix_is_imported():
    """Merged as Compose does: variables by name, volumes by their place in the container."""
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "team.md").read_text(), re.DOTALL)
    changed = yaml.safe_load(block)["services"]
    assert set(changed) == {
        name
        for name, one in SERVICES.items()
        if "./studies:/app/studies:ro" in one.get("volumes", ())
    }, "all that train"
    for name, more in changed.items():
        assert set(more) <= SERVICES[name].keys() | {"environment", "volumes"}
        places = {one.split(":")[1]: one for one in [*SERVICES[name]["volumes"], *more["volumes"]]}
        allowed = more["environment"]["TUNER_ALLOW"].split()
        assert allowed == [f"{Path(one).name}." for one in places if one.startswith("/app/")]
        assert all(
            one.endswith(":ro") for place, one in places.items() if place.startswith("/app/")
        )


# --- the secrets of a process


def entrypoint(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    started = [ROOT / "deploy" / "entrypoint", *command]
    path = {"PATH": os.environ["PATH"]}
    return subprocess.run(started, env=path | env, capture_output=True, text=True, check=False)


def test_the_entrypoint_gives_what_files_hold(tmp_path):
    """Whatever is in it: a shell makes nothing of it."""
    hostile = """a b $HOME `id` "'\\ %s ; rm -rf /"""
    (tmp_path / "secret").write_text(hostile + "\n")
    show = [sys.executable, "-c", "import os, sys; print(os.environ['PGPASSWORD'], sys.argv[1:])"]
    done = entrypoint(*show, "a b", PGPASSWORD_FILE=str(tmp_path / "secret"))
    assert done.stdout == f"{hostile} ['a b']\n"


@pytest.mark.parametrize("content", [None, "", "\n"], ids=["missing", "empty", "a line's end"])
def test_nothing_starts_without_its_secret(tmp_path, content):
    file = tmp_path / "secret"
    if content is not None:
        file.write_text(content)
    done = entrypoint("echo", "started", PGPASSWORD_FILE=str(file))
    assert done.returncode != 0
    assert done.stdout == ""
    assert str(file) in done.stderr


# --- what it says works


def published(stack: Stack) -> int:
    ended = "SELECT count(*) FROM tuner.tuner_published_trials WHERE final AND target = 'mlflow'"
    return int(postgres.rows(stack.cluster.url("tuning"), ended)[0][0])


def what_runs_is_what_the_file_says(stack: Stack) -> None:
    """Commands and environments as the system has them, with nothing but places exchanged."""
    assert sorted(one.name for one in stack.running) == [
        "accounts", "migrate", "mlflow", "recorder", "scheduler", "worker", "worker",
    ]  # fmt: skip
    for service in stack.running:
        if service.name in ONE_SHOT:
            continue
        said = SERVICES[service.name]
        assert service.cmdline == here(said["command"], service.places)
        expected = {
            key: put(str(value), service.places) for key, value in said["environment"].items()
        }
        for key in tuple(expected):
            if key.endswith("_FILE"):
                expected[key.removesuffix("_FILE")] = Path(expected[key]).read_text()
        image = set(compose.image_environment()) | {"PATH", "PYTHONPATH", "PWD", "OLDPWD"}
        shell = {"_", "SHLVL"}
        found = {k: v for k, v in service.environ.items() if k not in image | shell}
        assert found == expected


def every_service_is_healthy(stack: Stack) -> None:
    for name in ("postgres", "mlflow", "recorder", "worker", "scheduler"):
        assert stack.healthy(name)


def every_service_of_ours_tells_its_numbers(stack: Stack) -> None:
    loops = {"recorder": {"optuna", "mlflow"}, "worker": {"worker"}, "scheduler": {"scheduler"}}
    for service in stack.running:
        if service.name in loops:
            found = set(
                re.findall(r'^tuner_loop_turned_\w+{loop="(\w+)"}', of(service), re.MULTILINE)
            )
            assert found >= loops[service.name]


def of(service: Service) -> str:
    port = service.places["9464"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        return str(answer.read().decode())


def a_timetable_fires(stack: Stack) -> None:
    """At the next third of a minute, once the test has gone on to other things."""
    each = ["timetable", "add", "digits", "--cron", "*/20 * * * * *"]
    code, said = stack.tuner("worker", *each)  # whose login has submitted the study
    assert code == 0, said


def its_retraining_is_the_champion(stack: Stack) -> None:
    url = stack.cluster.url("tuning")
    ended = "SELECT outcome, reason FROM tuner.tuner_timetable_runs WHERE state = 'ended'"
    until(lambda: postgres.rows(url, ended), "the end of a timetable's run", 300)
    assert postgres.rows(url, ended)[0][0] == "promoted", postgres.rows(url, ended)
    champion = "SELECT version FROM mlflow.registered_model_aliases WHERE alias = 'champion'"
    assert postgres.rows(url, champion)


def the_study_is_whole(stack: Stack) -> None:
    code, said = stack.tuner("recorder", "doctor")
    assert (code, said) == (0, "Everything matches.\n")
    url = stack.cluster.url("tuning")
    states = postgres.rows(url, "SELECT DISTINCT state FROM tuner.tuner_trials")
    assert ("running",) not in states
    workers = postgres.rows(url, "SELECT DISTINCT worker FROM tuner.tuner_attempts")
    assert len(workers) in {1, 2}


def asked(
    stack: Stack,
    path: str,
    account: str | None = None,
    host: str | None = None,
    put: bytes | None = None,
) -> int:
    request = urllib.request.Request(
        f"http://127.0.0.1:{stack.port}{path}", data=put, method="PUT" if put else "GET"
    )
    if host:
        request.add_header("Host", host)
    return status_of(request, account)


def status_of(request: urllib.request.Request, account: str | None) -> int:
    """Return the status of the answer to a request, by an account if there is one."""
    if account:
        request.add_header("Authorization", f"Basic {base64.b64encode(account.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def mlflow_lets_in_who_has_an_account_and_names_a_host_of_its_own(stack: Stack) -> None:
    path = "/api/2.0/mlflow/experiments/get?experiment_id=0"
    right = f"admin:{stack.secrets['mlflow_admin']}"
    assert asked(stack, path) == 401
    assert asked(stack, path, "admin:password1234") == 401
    assert asked(stack, path, right) == 200
    assert asked(stack, path, right, "mlflow:5000") == 200
    assert asked(stack, path, right, "evil.example") == 403


def artifacts_go_through_the_server_and_stay_in_its_volume(stack: Stack) -> None:
    path = "/api/2.0/mlflow-artifacts/artifacts/"
    right = f"admin:{stack.secrets['mlflow_admin']}"
    assert asked(stack, f"{path}a/b.txt", put=b"mine") == 401
    assert asked(stack, f"{path}a/b.txt", right, put=b"mine") == 200
    volume = stack.folder / "mlflow" / "artifacts"
    assert (volume / "a" / "b.txt").read_bytes() == b"mine"
    for outside in ("../out.txt", "%2e%2e/out.txt", "a/%2e%2e/%2e%2e/out.txt", "%2Ftmp%2Fout.txt"):
        assert asked(stack, path + outside, right, put=b"theirs") >= 400
    assert not list(stack.folder.rglob("out.txt"))


def services_have_accounts_that_administer_nothing(stack: Stack) -> None:
    """Each may write experiments, and the scheduler models too; neither makes an account."""
    for name, model in (("recorder", 403), ("scheduler", 200)):
        account = f"{name}:{stack.secrets[f'mlflow_{name}']}"
        for path, body, expected in (
            ("users/create", {"username": "x", "password": "a long password"}, 403),
            ("users/update-admin", {"username": name, "is_admin": True}, 403),
            ("experiments/delete", {"experiment_id": "0"}, 403),
            ("experiments/set-experiment-tag",
             {"experiment_id": "0", "key": "x", "value": name}, 200),
            ("registered-models/update", {"name": "digits", "description": name}, model),
        ):  # fmt: skip
            assert sent(stack, path, body, account) == expected, (name, path)


def sent(stack: Stack, path: str, body: dict[str, object], account: str) -> int:
    method = {"update": "PATCH", "update-admin": "PATCH"}.get(path.rpartition("/")[2], "POST")
    request = urllib.request.Request(
        f"http://127.0.0.1:{stack.port}/api/2.0/mlflow/{path}",
        data=json.dumps(body).encode(),
        method=method,
        headers={"Content-Type": "application/json"},
    )
    return status_of(request, account)


def only_the_administrator_deletes(stack: Stack) -> None:
    for name in ("worker", "scheduler", "recorder"):
        code, said = stack.tuner(name, "delete", "digits", "--yes")
        assert code == 4
        assert "may not delete studies" in said
    code, said = stack.tuner("administrator", "delete", "digits", "--yes", "--force")
    assert code == 0, said


def the_dashboard_shows_the_study_to_a_reader(stack: Stack) -> None:
    stack.up("dashboard")
    until(lambda: stack.healthy("dashboard"), "the dashboard")
    stack.look()
    with urllib.request.urlopen(f"http://127.0.0.1:{stack.dashboard}/api/studies") as answer:
        assert "digits" in answer.read().decode()


def no_secret_is_where_it_can_be_read(stack: Stack) -> None:
    """Not in arguments, logs, tables or files; a hash of a password is none."""
    dump = [postgres.binaries() / "pg_dumpall", "-d", stack.cluster.administrator]
    tables = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    assert "CREATE TABLE tuner.tuner_trials" in tables
    logs = "".join(path.read_text() for path in stack.folder.glob("*.log"))
    assert "trial ended" in logs
    arguments = " ".join(word for one in stack.running for word in one.cmdline)
    files = b"".join(
        path.read_bytes()
        for volume in ("work", "mlflow", "tmp", "app")
        for path in (stack.folder / volume).rglob("*")
        if path.is_file() and not path.is_relative_to(stack.folder / "app" / "studies")
    )
    for name, secret in stack.secrets.items():
        for where in (tables, logs, arguments):
            assert secret not in where, name
        assert secret.encode() not in files, name


def a_stop_is_heeded(stack: Stack) -> None:
    codes = stack.down()
    assert codes["worker"] == [0, 0]
    assert codes["recorder"] == codes["scheduler"] == [0]


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_the_stack_works_as_the_file_says(tmp_path):
    """Started as processes, it trains a small study; one test, since starting it is dear."""
    with postgres.cluster() as cluster:
        stack = Stack(tmp_path, cluster)
        try:
            stack.up(*(name for name, one in SERVICES.items() if "profiles" not in one))
            stack.up("scheduler")
            sizes = ["--set", "budget.trials=4", "--set", "training.steps=60"]
            code, said = stack.tuner("worker", "submit", "studies/digits.toml", *sizes)
            assert code == 0, said
            until(lambda: published(stack) == 4, "four trials in all three places", 300)
            a_timetable_fires(stack)
            stack.look()
            what_runs_is_what_the_file_says(stack)
            every_service_is_healthy(stack)
            every_service_of_ours_tells_its_numbers(stack)
            the_study_is_whole(stack)
            mlflow_lets_in_who_has_an_account_and_names_a_host_of_its_own(stack)
            artifacts_go_through_the_server_and_stay_in_its_volume(stack)
            the_dashboard_shows_the_study_to_a_reader(stack)
            its_retraining_is_the_champion(stack)
            services_have_accounts_that_administer_nothing(stack)
            no_secret_is_where_it_can_be_read(stack)
            only_the_administrator_deletes(stack)
            a_stop_is_heeded(stack)
        finally:
            stack.kill()
