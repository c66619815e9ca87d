"""The documentation of this machine's Python as records."""

from likewise.apps.collections.schemas import RecordIn
from likewise.cli.demo import standard_library


def test_there_are_thousands_each_once_and_known_by_name() -> None:
    # When
    records = {record.id: record for record in standard_library()}
    # Then
    assert len(records) >= 5_000
    assert {
        "subprocess.run",
        "list.append",
        "len",
        "json.loads",
        "os.listdir",
        "math.sqrt",
        "pathlib.Path.exists",
    } <= set(records)
    assert (records["subprocess.run"].text or "").startswith("subprocess.run(")
    assert records["subprocess.run"].payload == {"module": "subprocess", "what": "function"}


def test_each_can_be_stored() -> None:
    for record in standard_library():
        RecordIn(id=record.id, text=record.text or "", payload=dict(record.payload), parent=record.parent)
