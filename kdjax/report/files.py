"""Files of a report: whole, or not at all."""

import pathlib


def replace(path: pathlib.Path, content: bytes) -> None:
    """Writes a file in one rename: a reader sees the old one or the whole new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
