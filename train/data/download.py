"""Shards from the web: fetched whole into a folder that holds only those in use."""

from __future__ import annotations

import hashlib
import http.client
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from corrflow.atomic_files import whole_file
from corrflow.errors import CorrflowError

PAUSES = (1.0, 4.0, 16.0, 60.0)
"""Seconds before each further try, once the server has answered at all."""
_BLOCK = 1 << 20


def is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


class Downloads:
    """Shards by their URLs.

    folder:  where they are kept while they are in use, by all processes of a machine together
    timeout: seconds without a byte after which a server counts as silent
    """

    def __init__(self, urls: Sequence[str], folder: Path, timeout: float, pauses: Sequence[float] = PAUSES) -> None:
        self.urls, self.folder, self.timeout, self.pauses = urls, folder, timeout, pauses
        self._answered = False
        self._closed = threading.Event()
        self._ours: set[Path] = set()

    def path(self, index: int) -> Path:
        """The file of shard `index`, fetched now where it is not there.

        Raises CorrflowError where that fails: at once for what trying again will not mend, and after some tries
        otherwise, unless nothing has ever come from there.
        """
        from filelock import FileLock

        url = self.urls[index]
        path = self._place(url)
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # the others of the machine then find the shard
            for pause in (*self.pauses, None):
                if path.is_file():
                    break
                try:
                    self._fetch(url, path)
                except (OSError, http.client.HTTPException, ValueError) as error:
                    hopeless = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429
                    if pause is None or hopeless or not self._answered or self._closed.wait(pause):
                        raise CorrflowError(
                            f"expected a shard at {public_name(url)}, got {_reason(error, self.timeout)}; check"
                            " the address and the server"
                        ) from error
            self._answered = True
            self._ours.add(path)
        return path

    def keep(self, indices: Sequence[int]) -> None:
        """Delete the others; files in use stay readable until they are closed. With none left: no more is fetched."""
        if not indices:
            self._closed.set()
        wanted = {self._place(self.urls[index]) for index in indices}
        for path in self._ours - wanted:
            path.unlink(missing_ok=True)
            path.with_suffix(".lock").unlink(missing_ok=True)
        self._ours &= wanted

    def _place(self, url: str) -> Path:
        return self.folder / f"{hashlib.sha256(url.encode()).hexdigest()[:24]}.tar"

    def _fetch(self, url: str, path: Path) -> None:
        request = urllib.request.Request(url, headers={"User-Agent": "corrflow"})
        try:
            with (
                whole_file(path) as part,
                urllib.request.urlopen(request, timeout=self.timeout) as answer,
                part.open("wb") as file,
            ):
                while block := answer.read(_BLOCK):
                    file.write(block)
                    if self._closed.is_set():
                        raise OSError("the run ended")
                announced = answer.headers.get("Content-Length")
                if announced is not None and int(announced) != file.tell():
                    raise OSError(f"{file.tell()} bytes of {announced}")
        except urllib.error.HTTPError as error:
            error.close()  # it holds the connection
            raise


def public_name(url: str) -> str:
    """A URL without user name, password and query, which may hold keys; a path as it is."""
    if not is_url(url):
        return url
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return "an address that is none"
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _reason(error: Exception, timeout: float) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} ({error.reason})"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no byte for {timeout:g} s"
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
