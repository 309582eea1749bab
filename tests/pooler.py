"""A real pgbouncer before a PostgreSQL server, in transaction mode."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from postgres import Cluster, _owner, free_port
from sqlalchemy import make_url

IGNORED = "extra_float_digits, options"
"""Startup parameters that a pooler has to ignore, since it cannot keep them."""


@contextmanager
def pooler(
    cluster: Cluster, *, ignored: str = IGNORED, connections: int = 5, clients: int = 100
) -> Iterator[int]:
    """Run a pooler with so few connections that its clients share them; yield its port."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program, "no pgbouncer: expected Debian's package of that name"
    owner = _owner()
    folder = Path(tempfile.mkdtemp(prefix="tuner-pgbouncer-"))
    if owner:
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    port = free_port()
    configuration = folder / "pgbouncer.ini"
    (folder / "users").write_text('"postgres" ""\n')
    configuration.write_text(
        f"""
        [databases]
        * = host=127.0.0.1 port={cluster.port}
        [pgbouncer]
        listen_addr = 127.0.0.1
        listen_port = {port}
        unix_socket_dir =
        auth_type = trust
        auth_file = {folder}/users
        pool_mode = transaction
        default_pool_size = {connections}
        max_client_conn = {clients}
        log_connections = 0
        log_disconnections = 0
        ignore_startup_parameters = {ignored}
        """.replace("\n        ", "\n")
    )
    process = subprocess.Popen(
        [program, str(configuration)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        user=owner.pw_uid if owner else None,
        group=owner.pw_gid if owner else None,
        extra_groups=[] if owner else None,
        start_new_session=True,  # Ctrl-C is for the tests
    )
    try:
        assert process.stderr is not None
        log = []
        for line in process.stderr:
            log.append(line)
            if "process up" in line:
                break
        else:
            raise AssertionError("".join(log))
        yield port
    finally:
        process.kill()
        process.communicate()
        shutil.rmtree(folder, ignore_errors=True)


def through(url: str, port: int) -> str:
    """Return the URL of the same database through the pooler."""
    return make_url(url).set(port=port).render_as_string(hide_password=False)
