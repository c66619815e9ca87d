"""A file of models for the setting `models_file`."""

import json
from pathlib import Path


def models_file(folder: Path, url: str, **fields: str | int | bool) -> Path:
    """One in that folder with a model at an address, `ours` of 16 dimensions if `fields` do not say otherwise."""
    size = {} if fields.get("kind") == "reranker" else {"dimension": 16}
    row = {"name": "ours", "base_url": url, **size, **fields}
    file = folder / "models.toml"
    # Strings, whole numbers and booleans are written alike in JSON and TOML.
    file.write_text("[[model]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in row.items()))
    return file
