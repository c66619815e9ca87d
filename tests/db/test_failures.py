"""Why a connection could not be made: told from what Postgres and its driver say, without repeating it."""

import psycopg
import pytest

from likewise.db.failures import why_no_connection
from likewise.testing import ThrowawayPostgres

BEGINNING = 'connection failed: connection to server at "10.0.0.7", port 5432 failed: '


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ('FATAL:  password authentication failed for user "canary"', "refuses its password"),
        ('FATAL:  role "canary" is not permitted to log in', "may not log in"),
        ('FATAL:  no pg_hba.conf entry for host "10.0.0.7", user "canary", no encryption', "does not let its role in"),
        ('FATAL:  permission denied for database "canary"', "may not connect to the database"),
        ('FATAL:  role "canary" does not exist', "no such role"),
        ('FATAL:  database "canary" does not exist', "no such database"),
        ('FATAL:  database "role \\"x" does not exist', "no such database"),
        ("FATAL:  sorry, too many clients already", "no connection left"),
        ("FATAL:  remaining connection slots are reserved for roles with ...", "no connection left"),
        ("Connection refused\n\tIs the server running on that host?", "nothing listens"),
        ("server does not support SSL, but SSL was required", "no secured connection"),
        ("something of a later version: canary", "cannot be reached"),
    ],
)
def test_what_postgres_says(said: str, what: str) -> None:
    why = why_no_connection(psycopg.OperationalError(BEGINNING + said))
    assert what in why.what
    assert "canary" not in why.what + why.fix


def test_a_name_that_nobody_knows() -> None:
    with pytest.raises(psycopg.OperationalError) as failed:
        psycopg.connect("postgresql://me@no-such-host.invalid/x", connect_timeout=5)
    assert "name is not known" in why_no_connection(failed.value).what


def test_a_database_that_is_not_there(postgres: ThrowawayPostgres) -> None:
    with pytest.raises(psycopg.OperationalError) as failed:
        psycopg.connect(postgres.server.url("likewise_owner", "not_there"))
    assert "no such database" in why_no_connection(failed.value).what
