"""The worker as one file for a board: a zip that its Python runs, with nothing of bblab installed there.

Numpy and the runtime's own package must be on the board.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from functools import cache
from pathlib import Path

import bblab

LEAST_PYTHON = (3, 9)
_PARTS = (
    "__init__.py",
    "errors.py",
    "installing.py",
    "catalogue.py",
    "rooms.py",
    "latency/*.py",
    "latency/runtimes/*.py",
)
_MAIN = "from bblab.latency.onboard import main\n\nmain()\n"


@cache
def worker() -> bytes:
    """The zip; the same sources give the same bytes."""
    package = Path(bblab.__file__).resolve().parent
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as packed:

        def put(name: str, text: str) -> None:
            packed.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED)

        put("__main__.py", _MAIN)
        put("bblab/latency/__init__.py", "")  # the whole room's names need the measuring side
        for pattern in _PARTS:
            for path in sorted(package.glob(pattern)):
                if path.parent.name == "latency" and path.name == "__init__.py":
                    continue
                put(f"bblab/{path.relative_to(package).as_posix()}", path.read_text(encoding="utf-8"))
    return made.getvalue()


def digest() -> str:
    return hashlib.sha256(worker()).hexdigest()[:12]
