"""The variants that people ship, as the artifacts of dvc.yaml mark them."""

from pathlib import Path
from typing import Any

LABEL = "recommended"
"""What marks an artifact of dvc.yaml as one that people ship."""


def recommended(text: str) -> dict[str, str]:
    """Return the variants that artifacts of a dvc.yaml mark as recommended, with the artifacts' names."""
    from ruamel.yaml import YAML

    artifacts: dict[str, Any] = YAML(typ="safe").load(text).get("artifacts") or {}
    return {Path(of["path"]).name: name for name, of in artifacts.items() if LABEL in (of.get("labels") or [])}
