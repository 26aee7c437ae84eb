"""Shards from the web, downloaded into a folder that contains only the shards in use."""

from __future__ import annotations

import base64
import hashlib
import http.client
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from corrflow.atomic_files import AtomicFile
from corrflow.errors import CorrflowError

PAUSES = (1.0, 4.0, 16.0, 60.0)
"""Seconds before each retry, after the server has answered once."""
MAX_SHARD_BYTES = 64 << 30
LEAST_RATE = 1000.0
"""Bytes a second of a server that answers; a slower one counts as silent."""
_BLOCK = 1 << 20


def is_url(name: str) -> bool:
    """Check for an http or https URL."""
    return name.startswith(("http://", "https://"))


class Downloads:
    """Downloads of shards.

    folder:  folder of the shards in use, shared by all processes of a machine
    timeout: seconds without a byte until a server counts as silent
    """

    def __init__(self, urls: Sequence[str], folder: Path, timeout: float, pauses: Sequence[float] = PAUSES) -> None:
        self.urls, self.folder, self.timeout, self.pauses = urls, folder, timeout, pauses
        self._answered = False
        self._closed = threading.Event()
        self._downloaded: set[Path] = set()

    def path(self, index: int) -> Path:
        """Return the file of shard `index`, and download it if it is missing.

        Raises CorrflowError if that fails. Temporary failures are retried if an earlier download has succeeded.
        """
        from filelock import FileLock

        url = self.urls[index]
        path = self._local_path(url)
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # other processes of the machine then find the shard
            for pause in (*self.pauses, None):
                if path.is_file():
                    break
                try:
                    self._download(url, path)
                except (OSError, http.client.HTTPException, ValueError) as error:
                    permanent = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429
                    if pause is None or permanent or not self._answered or self._closed.wait(pause):
                        raise CorrflowError(
                            f"expected a shard at {public_name(url)}, got {_reason(error, self.timeout)}; check"
                            " the address and the server"
                        ) from error
            self._answered = True
            self._downloaded.add(path)
        return path

    def retain(self, indices: Sequence[int]) -> None:
        """Delete all other shards; open files stay readable. An empty sequence ends all downloads."""
        if not indices:
            self._closed.set()
        wanted = {self._local_path(self.urls[index]) for index in indices}
        for path in self._downloaded - wanted:
            path.unlink(missing_ok=True)
            path.with_suffix(".lock").unlink(missing_ok=True)
        self._downloaded &= wanted

    def _local_path(self, url: str) -> Path:
        return self.folder / f"{hashlib.sha256(url.encode()).hexdigest()[:24]}.tar"

    def _download(self, url: str, path: Path) -> None:
        try:
            request = _request(url)
            with (
                urllib.request.urlopen(request, timeout=self.timeout) as response,
                AtomicFile(path) as part,
                open(part, "wb") as file,
            ):
                stated = response.headers.get("Content-Length", "")
                announced = int(stated) if re.fullmatch("[0-9]{1,18}", stated) else None
                started = time.monotonic()
                while block := response.read1(_BLOCK):
                    file.write(block)
                    if self._closed.is_set():
                        raise OSError("the run ended")
                    if file.tell() > min(MAX_SHARD_BYTES, MAX_SHARD_BYTES if announced is None else announced):
                        raise OSError(f"more than {announced or MAX_SHARD_BYTES} bytes")
                    seconds = time.monotonic() - started
                    if seconds > self.timeout and file.tell() < LEAST_RATE * seconds:
                        raise OSError(f"{file.tell()} bytes in {seconds:.0f} s")
                if announced is not None and announced != file.tell():
                    raise OSError(f"{file.tell()} bytes of {announced}")
        except urllib.error.HTTPError as error:
            error.close()  # closes the connection
            raise


def _request(url: str) -> urllib.request.Request:
    """Return the request of a URL, with its user name and password in a header that no redirect repeats."""
    parts = urllib.parse.urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    bare = urllib.parse.urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
    request = urllib.request.Request(bare, headers={"User-Agent": "corrflow"})
    if user:
        words = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {words}")
    return request


def public_name(url: str) -> str:
    """Remove user name, password and query, which may contain secrets, from a URL; return a path unchanged."""
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
        return f"a server that timed out, without a byte for {timeout:g} s"
    if isinstance(error, (ValueError, http.client.InvalidURL)):  # their messages repeat the address
        return "an address that is none"
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
