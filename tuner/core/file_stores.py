"""Where checkpoints are kept: a folder, or a bucket of an object storage.

Keys are relative paths with slashes, made by us. A write appears as a whole or not at all; errors
are `OSError`s, and `FileNotFoundError` where there is no such file.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit
from urllib.request import url2pathname

from tuner.core import failpoints
from tuner.core.errors import UsageError
from tuner.core.outputs import output_error, private_file, private_folder
from tuner.core.redaction import redacted

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

SCHEMES = ("s3", "gs", "az", "memory")
"""Of object storages, the last one for tests: its files are those of one process."""
RETRY_SECONDS = 60
"""For how long a request to an object storage is repeated."""
MOST_BYTES = 32 << 30
"""A larger file is not fetched: no checkpoint of ours has that size."""


class FileStore(Protocol):
    """A place for files by key."""

    is_remote: bool
    """Whether a write may wait for a network and a service."""

    def write(self, key: str, content: bytes) -> None:
        """Write a file, or replace it: a reader finds the old one or the new one."""

    def read(self, key: str) -> bytes:
        """Return the content of a file."""

    def exists(self, key: str) -> bool:
        """Return whether there is such a file."""

    def remove(self, key: str) -> None:
        """Remove a file, if it exists."""

    def names(self, prefix: str) -> set[str]:
        """Return the names of what lies directly below a key."""

    def remove_below(self, prefix: str, but: str | None = None) -> None:
        """Remove all files below a key but the one named; errors are ignored."""


@contextmanager
def writing_to(store: FileStore) -> Iterator[None]:
    """Raise `OutputError` if the body cannot write into a store."""
    try:
        yield
    except OSError as error:
        raise output_error(store, error) from error


def file_store(address: str | Path) -> FileStore:
    """Return the store at an address: a folder, or a URL such as `s3://bucket/path`.

    Raise `UsageError` for any other URL.
    """
    parts = urlsplit(str(address))
    if isinstance(address, Path) or len(parts.scheme) < 2 or "://" not in address:
        return FolderStore(Path(address))
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(
            f"expected an address without credentials and options, got {redacted(address)}; set "
            "them in the environment, such as AWS_ACCESS_KEY_ID"
        )
    if parts.scheme == "file":
        return FolderStore(Path(url2pathname(parts.path)))
    if parts.scheme not in SCHEMES or not (parts.netloc or parts.scheme == "memory"):
        raise UsageError(
            f"expected a folder, file://, s3://, gs:// or az:// for checkpoints, got {address}"
        )
    return BucketStore(address)


class FolderStore:
    """Files below a folder, which may be shared by machines."""

    is_remote = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def write(self, key: str, content: bytes) -> None:
        """Write a file atomically and durably: after a crash there is the old one or the new."""
        path = self._path(key)
        private_folder(path.parent)
        # in the same folder, since a rename is atomic only within a file system
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        try:
            private_file(partial)
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            failpoints.reach("checkpoint.before_rename")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        _sync_folder(path.parent)

    def read(self, key: str) -> bytes:
        """Return the content of a file."""
        return self._path(key).read_bytes()

    def exists(self, key: str) -> bool:
        """Return whether there is such a file."""
        return self._path(key).exists()

    def remove(self, key: str) -> None:
        """Remove a file, if it exists."""
        self._path(key).unlink(missing_ok=True)

    def names(self, prefix: str) -> set[str]:
        """Return the names of the files and folders directly below a folder."""
        return {one.name for one in self._path(prefix).glob("*")}

    def remove_below(self, prefix: str, but: str | None = None) -> None:
        """Remove a folder, or all that is in it but one file; errors are ignored."""
        with suppress(OSError):
            folder, kept = self._path(prefix), but and self._path(but)
            if kept is None:
                shutil.rmtree(folder, ignore_errors=True)
                return
            for other in folder.glob("*"):
                if other != kept:
                    with suppress(OSError):
                        other.unlink()

    def _path(self, key: str) -> Path:
        """Return the path of a key. Raise `OSError` if a symbolic link leads out of the folder."""
        path = self.folder / key
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise OSError(f"{path} lies outside the folder {self.folder}")
        return path


class BucketStore:
    """Objects below a prefix of a bucket. Credentials come from the environment or the machine."""

    is_remote = True

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def __str__(self) -> str:
        return self._url

    def write(self, key: str, content: bytes) -> None:
        """Put an object; a reader finds the old one or the new one."""
        with self._errors(key):
            failpoints.reach("checkpoint.before_rename")
            self._library.put(self._bucket, key, content)

    def read(self, key: str) -> bytes:
        """Return the content of an object. Raise `OSError` if it is larger than any checkpoint."""
        with self._errors(key):
            found = self._library.get(self._bucket, key)
            if found.meta["size"] > MOST_BYTES:
                raise OSError(f"{self._url}/{key} has {found.meta['size']} bytes")
            return bytes(found.bytes())

    def exists(self, key: str) -> bool:
        """Return whether there is such an object."""
        try:
            with self._errors(key):
                self._library.head(self._bucket, key)
        except FileNotFoundError:
            return False
        return True

    def remove(self, key: str) -> None:
        """Remove an object, if it exists."""
        with suppress(FileNotFoundError), self._errors(key):
            self._library.delete(self._bucket, key)

    def names(self, prefix: str) -> set[str]:
        """Return the names of what lies directly below a key."""
        with self._errors(prefix):
            found = self._library.list_with_delimiter(self._bucket, prefix and f"{prefix}/")
        paths = [*found["common_prefixes"], *(one["path"] for one in found["objects"])]
        return {path.rstrip("/").rpartition("/")[2] for path in paths}

    def remove_below(self, prefix: str, but: str | None = None) -> None:
        """Remove all objects below a key but one; errors are ignored."""
        with suppress(OSError), self._errors(prefix):
            for some in self._library.list(self._bucket, f"{prefix}/"):
                if gone := [one["path"] for one in some if one["path"] != but]:
                    self._library.delete(self._bucket, gone)

    @cached_property
    def _library(self) -> Any:
        try:
            import obstore  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise UsageError(
                f"checkpoints at {self._url} need an extra: pip install 'tuner-lr[buckets]'"
            ) from error
        return obstore

    @cached_property
    def _bucket(self) -> ObjectStore:
        from obstore.store import from_url  # noqa: PLC0415 - an extra

        allow_http = os.environ.get("AWS_ALLOW_HTTP", "").lower() in {"1", "true"}
        client: ClientConfig = {
            "connect_timeout": "10s",
            "timeout": "600s",
            "allow_http": allow_http,  # a server beside us; without these options it is read there
        }
        retries: RetryConfig = {
            "max_retries": 20,
            "retry_timeout": timedelta(seconds=RETRY_SECONDS),
        }
        if self._url.startswith("memory:"):
            return from_url("memory:///")
        try:
            return from_url(self._url, client_options=client, retry_config=retries)
        except Exception as error:
            raise UsageError(f"{self._url}: {redacted(str(error))}") from error

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Raise an `OSError` without secrets for any error of the library."""
        errors = self._library.exceptions
        try:
            yield
        except (errors.NotFoundError, FileNotFoundError) as error:
            raise FileNotFoundError(f"there is no {self._url}/{key}") from error
        except (errors.BaseError, PermissionError) as error:
            raise OSError(f"{self._url}/{key}: {redacted(_message(error))}") from error


def _message(error: Exception) -> str:
    """Return the library's message without its appendix for debugging."""
    return " ".join(str(error).partition("Debug source:")[0].split())


def _sync_folder(folder: Path) -> None:
    """Make the rename durable, on systems that can sync folders."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
