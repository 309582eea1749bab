"""Another user of the operating system for commands, so that they cannot read what a worker may.

Only a worker of root can start a program as somebody else. Only commands have another user: a train
function in a process of its own has the worker's.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tuner.core.errors import WorkloadError

USER = "TUNER_COMMAND_USER"
"""The worker's variable with the name of the user who runs commands."""

SEARCHABLE = 0o711
"""Mode of a folder that others may pass through, but not list."""


@dataclass(frozen=True, kw_only=True)
class OtherUser:
    """A user who is not the worker's."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> OtherUser | None:
        """Return the user that a variable names, None without it. Raise `WorkloadError`."""
        name = environment.get(USER, "")
        if not name:
            return None
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            raise WorkloadError(f"{USER}: expected the name of a user here, got {name!r}") from None
        if found.pw_uid == 0:
            raise WorkloadError(
                f"{USER}: expected a user with fewer rights, got {name!r}, who is root"
            )
        if os.geteuid() != 0:
            raise WorkloadError(
                f"{USER}={name}: only a worker of root can run programs as somebody else; omit it, "
                "or start the worker as that user"
            )
        return cls(
            name=name,
            uid=found.pw_uid,
            gid=found.pw_gid,
            groups=tuple(os.getgrouplist(name, found.pw_gid)),
            home=found.pw_dir,
        )

    @property
    def numbers(self) -> str:
        """The user's number, its group's, and those of all its groups, for the guardian."""
        return ":".join(map(str, (self.uid, self.gid, *self.groups)))

    @property
    def variables(self) -> dict[str, str]:
        """The variables of an environment that name the user."""
        return {"HOME": self.home, "USER": self.name, "LOGNAME": self.name}

    def take_over(self, folder: Path) -> None:
        """Make a folder and all in it the user's."""
        for place, folders, files in os.walk(folder):
            for name in (".", *folders, *files):
                os.chown(Path(place) / name, self.uid, self.gid, follow_symlinks=False)
