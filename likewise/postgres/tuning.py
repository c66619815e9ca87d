"""The configuration of the embedded Postgres: a log without rows, who may log in, and sizes for this machine."""

import shutil
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from likewise.machine import memory_limit, processors

MIB = 2**20
GIB = 2**30
# pg_hba.conf: users of this machine connect whom the map of `identity_map` lets in, by socket only.
HOST_BASED_AUTHENTICATION = "local all all peer map=likewise\n"
ROLES = ("postgres", "likewise_owner", "likewise_server")

# No parameter or row reaches the log, and no statement but one that panics: `log_min_error_statement` knows no level
# above that, and writes the statement's text (`STATEMENT:  COMMIT`), whose parameters are bound and not in it. Messages
# of level ERROR carry values (`invalid input syntax for type integer: "..."`), those of level LOG can be made by any
# session (debug_print_plan, RAISE LOG) or show the statement of a crashed backend, and DETAIL shows keys; so only what
# ends a session or the server is written, and tersely.
PRIVATE = {
    "log_min_messages": "fatal",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_statement": "none",
    "log_min_duration_statement": "-1",
    "log_min_duration_sample": "-1",
    "log_transaction_sample_rate": "0",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "log_lock_waits": "off",
    "log_temp_files": "-1",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_timezone": "UTC",
    # Recycled segments would keep the bytes of deleted texts.
    "wal_recycle": "off",
    "wal_init_zero": "on",
}
FIXED = {
    "listen_addresses": "",
    "port": "5432",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    # A collection has several tables with several indexes; one transaction may touch hundreds of collections.
    "max_locks_per_transaction": "1024",
    # Compiling costs more than it saves on statements of milliseconds.
    "jit": "off",
    "timezone": "UTC",
    "lc_messages": "C",
    "random_page_cost": "1.1",
    "max_wal_size": "2GB",
}
THROW_AWAY = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}


def server_settings(socket_folder: Path, *, durable: bool) -> dict[str, str]:
    """Return every setting of the server; `durable=False` gives up what a crash would leave for speed."""
    return {
        **FIXED,
        **sizes(memory_limit(), processors()),
        **({} if durable else THROW_AWAY),
        **PRIVATE,
        "unix_socket_directories": _quoted_folder(socket_folder),
    }


def sizes(memory: int, processors: int) -> dict[str, str]:
    """Return the settings that follow the machine; models need the memory too, so Postgres takes an eighth."""
    # The graph of 1,000,000 vectors of 384 halves takes 2 GiB while its index is built, and nothing else comes near.
    maintenance = _between(64 * MIB, memory // 8, 4 * GIB)
    return {
        "shared_buffers": _megabytes(_between(64 * MIB, memory // 8, 4 * GIB)),
        "effective_cache_size": _megabytes(_between(128 * MIB, memory // 2, 64 * GIB)),
        "maintenance_work_mem": _megabytes(maintenance),
        "autovacuum_work_mem": _megabytes(_between(32 * MIB, memory // 64, 256 * MIB)),
        "work_mem": _megabytes(_between(4 * MIB, memory // 1024, 32 * MIB)),
        "max_parallel_workers": str(_between(2, processors, 8)),
        "max_parallel_maintenance_workers": str(_between(1, processors - 1, 4)),
        "dynamic_shared_memory_type": shared_memory_type(maintenance),
    }


def shared_memory_type(maintenance: int, shm: Path = Path("/dev/shm")) -> str:  # noqa: S108 - measured, not written
    """Choose how parallel work shares memory: a parallel build takes all of `maintenance_work_mem` from it.

    Containers have 64 MB in /dev/shm. System V memory is not counted there, and Postgres cannot start without it.
    """
    if not sys.platform.startswith("linux"):
        return "posix"
    with suppress(OSError):
        if shutil.disk_usage(shm).total >= 2 * maintenance + 128 * MIB:
            return "posix"
    return "sysv"


def configuration(settings: Mapping[str, str]) -> str:
    """Write settings as the text of a configuration file."""
    lines = (f"{name} = {_quoted(value)}" for name, value in settings.items())
    return "\n".join(["# Written by Likewise at each start; changes here are lost.", *lines, ""])


def identity_map(user_names: Iterable[str]) -> str:
    """Map operating-system users to the roles that they may be."""
    return "".join(f'likewise "{name}" {role}\n' for name in user_names for role in ROLES)


def _between(low: int, value: int, high: int) -> int:
    return max(low, min(value, high))


def _megabytes(size: int) -> str:
    return f"{size // MIB}MB"


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def _quoted_folder(folder: Path) -> str:
    # This setting is a list, in which quotes protect commas and spaces.
    return '"' + str(folder).replace('"', '""') + '"'
