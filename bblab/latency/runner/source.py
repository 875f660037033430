"""ncnn's source: the sdist on whatever package index pip is set to, found and checked at run time.

The sdist carries ncnn's whole C++ source, but pip will not hand it over: its setup.py stamps the day's date as the
version, and pip discards an archive whose metadata disagree with its name. So the index is read here, by the simple
repository API (PEP 503 and PEP 691), and no address of any index is written in this project.
"""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import os
import re
import shlex
import shutil
import ssl
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bblab.errors import BblabError, RunError

PACKAGE = "ncnn"
TIMEOUT_S = 60.0
MAX_INDEX_BYTES = 50_000_000  # the page of ncnn is below 1 MB
MAX_SDIST_BYTES = 500_000_000  # ncnn 1.0.20261020: 35 MB
ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_VERSION = re.compile(r"\d+(\.\d+)*\Z")  # final releases only: ncnn's are 1.0.DATE

# bytes done, bytes in all (0: not told)
Told = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Sdist:
    """One source archive as an index lists it. `sha256` is empty where the index gives none."""

    version: str
    filename: str
    url: str
    sha256: str


def indexes() -> list[str]:
    """The indexes that pip and uv are set to, the first first. Raises RunError where none is known.

    The environment wins, then pip's configuration, then what pip says in its help is its default.
    """
    found = [os.environ.get(name, "") for name in ("PIP_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX")]
    configured = _pip_settings()
    found += [configured.get("index-url", "")]
    if not any(found):
        found += [_pip_default()]
    found += [configured.get("extra-index-url", "")]
    for name in ("PIP_EXTRA_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_INDEX"):
        found += os.environ.get(name, "").split()
    # uv writes NAME=URL for a named index.
    urls = [re.sub(r"\A[\w.-]+=(?=\w+://)", "", url) for text in found for url in text.split()]
    if not urls:
        raise RunError(
            "no package index is known: neither the environment nor pip names one",
            hint="set PIP_INDEX_URL to your index, or name ncnn's source archive with --sdist FILE",
        )
    return list(dict.fromkeys(url.rstrip("/") for url in urls))


def _pips() -> list[list[str]]:
    """Commands that start a pip: an environment made by uv has none of its own."""
    commands = [[sys.executable, "-m", "pip"]]
    commands += [[path, "-m", "pip"] for name in ("python3", "python") if (path := shutil.which(name))]
    commands += [[path] for name in ("pip3", "pip") if (path := shutil.which(name))]
    return commands


def _ask_pip(*arguments: str) -> str:
    for command in _pips():
        try:
            done = subprocess.run(
                [*command, *arguments], capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return done.stdout
    return ""


def _pip_settings() -> dict[str, str]:
    """pip's configuration by option; a section of a command (`install.`) gives way to the global one."""
    settings: dict[str, str] = {}
    for line in _ask_pip("config", "list").splitlines():
        name, equals, value = line.partition("=")
        section, dot, option = name.strip().strip(":").partition(".")
        if not equals or not dot:
            continue
        try:
            (text,) = shlex.split(value.strip()) or [""]
        except ValueError:
            continue
        option = option.strip(":.").replace("_", "-")
        if section.strip(":") in ("global", "env") or option not in settings:
            settings[option] = text.replace("\\n", " ")
    return settings


def _pip_default() -> str:
    said = re.search(r"Base\s+URL\s+of\s+the[^()]*\(default\s+(\S+)\)", _ask_pip("download", "--help"))
    return said[1] if said else ""


def find(version: str | None = None, *, at: Sequence[str] | None = None) -> Sdist:
    """The source archive of a version, or the newest, on the first index that has it.

    Raises RunError where no index answers or none has it, naming the versions there are.
    """
    seen: list[str] = []
    troubles: list[str] = []
    for index in at if at is not None else indexes():
        try:
            listed = _listed(index)
        except RunError as error:
            troubles.append(error.message)
            continue
        fits = [s for s in listed if version is None or s.version == version]
        if fits:
            return max(fits, key=lambda s: _order(s.version))
        seen += [s.version for s in listed]
    if seen:
        newest = sorted(set(seen), key=_order)[-5:]
        raise RunError(f"no source archive of {PACKAGE} {version}", hint=f"there is, newest last: {', '.join(newest)}")
    raise RunError(
        f"no source archive of {PACKAGE} was found" + "".join(f"\n  {trouble}" for trouble in troubles),
        hint="check the network and PIP_INDEX_URL, or name the archive with --sdist FILE",
    )


def _order(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _listed(index: str) -> list[Sdist]:
    """The final, not withdrawn source archives that an index lists."""
    url = f"{index}/{PACKAGE}/"
    body, kind, final_url = _get(url, MAX_INDEX_BYTES)
    found = []
    for filename, href, digest, is_yanked in _links(body, kind, url):
        match = re.fullmatch(rf"{PACKAGE}-(.+)\.tar\.gz", filename)
        if match and _VERSION.match(match[1]) and not is_yanked:
            found.append(Sdist(match[1], filename, urllib.parse.urljoin(final_url, href), digest))
    return found


def _links(body: bytes, kind: str, url: str) -> list[tuple[str, str, str, bool]]:
    """File name, address, sha256 and whether it was withdrawn, of every file on a page of an index."""
    text = body.decode("utf-8", errors="replace")
    if "json" in kind:
        try:
            return [
                (f["filename"], f["url"], f.get("hashes", {}).get("sha256", ""), bool(f.get("yanked")))
                for f in json.loads(text)["files"]
            ]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise RunError(f"{_shown(url)} is not a page of a package index") from None
    page = _Anchors()
    page.feed(text)
    links = []
    for attributes in page.found:
        address, _, fragment = (attributes.get("href") or "").partition("#")
        name = urllib.parse.unquote(address.rpartition("/")[2])
        digest = fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else ""
        links.append((name, address, digest, "data-yanked" in attributes))
    return links


class _Anchors(html.parser.HTMLParser):
    """The links of a page, each as its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found.append(dict(attrs))


def fetch(sdist: Sdist, folder: Path, on_bytes: Told | None = None) -> Path:
    """The archive in `folder`, downloaded now or remembered. Raises RunError if it has not the hash it should have."""
    path = folder / sdist.filename
    if path.is_file() and sdist.sha256 and sha256(path) == sdist.sha256:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            _get(sdist.url, MAX_SDIST_BYTES, file.write, on_bytes)
        got = sha256(partial)
        if sdist.sha256 and got != sdist.sha256:
            raise RunError(
                f"{sdist.filename} has the sha256 {got[:16]}..., the index says {sdist.sha256[:16]}...",
                hint="it was cut off or changed on the way; run it again, and if it stays so, do not use that index",
            )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _get(
    url: str, limit: int, write: Callable[[bytes], object] | None = None, on_bytes: Told | None = None
) -> tuple[bytes, str, str]:
    """The body (empty where `write` takes it), its content type and the final address. Raises RunError."""
    request, parts = _request(url)
    if parts.scheme not in ("http", "https", "file"):
        raise RunError(f"{_shown(url)}: an index has an address with https://")
    certificates = os.environ.get("PIP_CERT") or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE")
    try:
        context = ssl.create_default_context(cafile=certificates or None)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=context) as answer:
            total = int(answer.headers.get("Content-Length") or 0)
            chunks: list[bytes] = []
            done = 0
            while chunk := answer.read(1 << 18):
                done += len(chunk)
                if done > limit:
                    raise RunError(f"{_shown(url)} is over {limit / 1e6:.0f} MB")
                (write or chunks.append)(chunk)
                if on_bytes:
                    on_bytes(done, total)
            if total and done != total:
                raise RunError(f"{_shown(url)} was cut off after {done} of {total} bytes")
            return b"".join(chunks), answer.headers.get("Content-Type") or "", answer.url
    except urllib.error.HTTPError as error:
        raise RunError(f"{_shown(url)} answers {error.code} {error.reason}") from None
    except (urllib.error.URLError, TimeoutError, ssl.SSLError, ConnectionError, ValueError) as error:
        raise RunError(f"{_shown(url)} cannot be reached: {getattr(error, 'reason', error)}") from None


def _request(url: str) -> tuple[urllib.request.Request, urllib.parse.SplitResult]:
    """A request; name and password in the address go into a header, as pip does."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        raise RunError(f"{url!r} is not an address") from None
    headers = {"Accept": ACCEPT}
    if parts.username:
        given = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(given.encode()).decode()
        parts = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    try:
        return urllib.request.Request(parts.geturl(), headers=headers), parts
    except ValueError:
        raise RunError(f"{url!r} is not an address", hint="PIP_INDEX_URL names a package index") from None


def _shown(url: str) -> str:
    """An address without the name and password in it."""
    return re.sub(r"//[^/@]*@", "//", url)


def named(path: Path) -> Sdist:
    """An archive that the user names. Raises BblabError where it is none of ncnn's."""
    match = re.fullmatch(rf"{PACKAGE}-(\d[\d.]*)\.tar\.gz", path.name)
    if not match:
        raise BblabError(f"{path} is not a source archive of ncnn", hint=f"it is called {PACKAGE}-VERSION.tar.gz")
    if not path.is_file():
        raise BblabError(f"there is no file {path}", hint=f"name {PACKAGE}-VERSION.tar.gz, as the index has it")
    return Sdist(match[1], path.name, path.absolute().as_uri(), sha256(path))
