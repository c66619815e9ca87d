"""The operating-system user that the embedded Postgres runs as; Postgres refuses to run as root."""

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from likewise.errors import ServerStartError

if sys.platform != "win32":
    import pwd

# Tried in this order when Likewise itself runs as root.
UNPRIVILEGED = ("likewise", "postgres", "nobody")


class SpawnOptions(TypedDict, total=False):
    """The arguments of `subprocess.Popen` that change the user."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True)
class SystemUser:
    """A user of the operating system by number and name."""

    uid: int
    gid: int
    name: str

    @property
    def is_ours(self) -> bool:
        """True if this process runs as that user already."""
        return self.uid == os.geteuid()

    @property
    def spawn_options(self) -> SpawnOptions:
        """The options that make `subprocess` run a program as that user."""
        return {} if self.is_ours else {"user": self.uid, "group": self.gid, "extra_groups": []}

    def own(self, path: Path) -> None:
        """Make that user the owner of a path that this process made; a link is never followed."""
        if not self.is_ours:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def may_enter(self, path: Path) -> bool:
        """Return whether that user may go into a folder or run a program; the kernel answers, so ACLs count."""
        if self.is_ours:
            return os.access(path, os.X_OK)
        command = ["/bin/sh", "-c", 'test -x "$1"', "sh", str(path)]
        try:
            return subprocess.run(command, cwd="/", check=False, **self.spawn_options).returncode == 0  # noqa: S603
        except PermissionError:
            raise ServerStartError(
                f"Postgres refuses to run as root, and this process may not become the user {self.name}. "
                "Run Likewise as another user, or set LIKEWISE_DATABASE_URL."
            ) from None


def system_user_for(*places: Path) -> SystemUser:
    """Choose who runs Postgres on these folders: this user; for root their owner, or the first user for such work."""
    if os.geteuid() != 0:
        return _account_of(os.geteuid())
    owners = [place.stat().st_uid for place in places if place.exists()]
    owner = next((uid for uid in owners if uid != 0), None)
    return _unprivileged() if owner is None else _account_of(owner)


def names_let_in(account: SystemUser) -> list[str]:
    """List the users whose Likewise processes may log in: the one that runs Postgres, and root, who can become it."""
    try:
        root = pwd.getpwuid(0).pw_name
    except KeyError:
        return [account.name]
    return list(dict.fromkeys([account.name, root]))


def _account_of(uid: int) -> SystemUser:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        raise ServerStartError(
            f"The user id {uid} has no name on this system, and Postgres runs only as a user with a name. "
            "Run Likewise as a named user, or set LIKEWISE_DATABASE_URL to a Postgres that runs elsewhere."
        ) from None
    return SystemUser(entry.pw_uid, entry.pw_gid, entry.pw_name)


def _unprivileged() -> SystemUser:
    for name in UNPRIVILEGED:
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            if entry.pw_uid != 0:
                return SystemUser(entry.pw_uid, entry.pw_gid, entry.pw_name)
    raise ServerStartError(
        f"Postgres refuses to run as root, and none of the users {', '.join(UNPRIVILEGED)} exists. "
        "Add one (useradd --system likewise), run Likewise as another user, or set LIKEWISE_DATABASE_URL."
    )
