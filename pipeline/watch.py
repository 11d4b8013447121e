"""Look whether a folder of one's own, which the model or a corpus is taken from, has changed since it was read."""

from pipeline.core import outside, params, stage
from pipeline.core.errors import UserError, suggestion


def main(name: str) -> None:
    """Write outside/<name>.json; what stands there stays where the folder is not on this machine."""
    if name not in outside.NAMES:
        raise UserError(f"unknown name {name!r}{suggestion(name, outside.NAMES)}")
    folders = outside.read(params.read(), name)
    if all(map(outside.there, folders)):
        outside.note(name, outside.state(name, folders))
    else:
        print(f"{name}: {folders[0]} is not here, so it is taken as it was")


if __name__ == "__main__":
    stage.run(main)
