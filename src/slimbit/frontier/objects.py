"""Objects of a run: content named by its SHA-256, in the run's folder or in an artifact store that machines share.

Promises, and what keeps them:

* What is read has the hash that was asked for; anything else is an error, never a result.
* What was written is there completely or not at all: a file is renamed when it is on the disk, and object stores show
  an object once it is whole.
* Writing the same content again, by anyone at any time, changes nothing.
"""

import io
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from slimbit.frontier.patience import Patience, silent
from slimbit.records.codec import sha256
from slimbit.records.errors import InputError, MissingExtraError
from slimbit.records.files import expanded, not_written, read_regular, write_whole

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore

Kind = Literal["json", "safetensors", "bin"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LARGEST_OBJECT = 1 << 34
ADDRESS = re.compile(r"(s3|gs)://([a-z0-9][a-z0-9._-]{1,220}[a-z0-9])(?:/(.*))?")


class Objects(ABC):
    """Where a run's objects are."""

    @abstractmethod
    def read(self, digest: str, kind: Kind) -> bytes:
        """The content of that hash.

        Raises:
            InputError: It is missing, or what is there has another hash; file or address are named.
        """

    @abstractmethod
    def write(self, content: bytes, kind: Kind) -> str:
        """Keep content and return its digest.

        Raises:
            StoreError: It could not be written.
        """


class FolderObjects(Objects):
    """Objects below a folder.

    Optuna's `FileSystemArtifactStore` is not used: it writes a file under its final name, so that a worker that is
    killed leaves half of one behind.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, digest: str, kind: Kind) -> bytes:
        """The content of that hash, from its file."""
        return read_object(self.folder, digest, kind)

    def write(self, content: bytes, kind: Kind) -> str:
        """Keep content as a file and return its digest."""
        return write_object(self.folder, content, kind)


class StoredObjects(Objects):
    """Objects in an artifact store of Optuna's: S3 and what speaks its protocol, or Google Cloud Storage.

    A store that fails now and then is asked again, and content that arrives with another hash is read a second time.
    """

    def __init__(self, store: "ArtifactStore", prefix: str, address: str, tell: Callable[[str], None] = silent) -> None:
        self._store, self._prefix, self.address = store, prefix, address
        self._known: set[str] = set()
        self.patience = Patience(f"artifact store {address}", is_passing=_is_passing, reason=_reason, tell=tell)

    def read(self, digest: str, kind: Kind) -> bytes:
        """The content of that hash, from the store."""
        from optuna.artifacts.exceptions import ArtifactNotFound

        name = self._name(digest, kind)

        def whole() -> bytes:
            with self._store.open_reader(name) as stream:
                content = stream.read(LARGEST_OBJECT + 1)
            if sha256(content) != digest:
                raise _Damaged(sha256(content))
            return content

        try:
            try:
                return self.patience(whole)
            except _Damaged:  # cut off on its way, or damaged where it is
                return self.patience(whole)
        except ArtifactNotFound:
            raise InputError(
                f"object {name} must exist in artifact store {self.address}, got none: every worker of a run must be "
                "given the same --artifacts"
            ) from None
        except _Damaged as found:
            raise InputError(
                f"object {name} of artifact store {self.address} must have the hash in its name, got {found}: it is "
                "damaged"
            ) from None
        except Exception as error:
            raise InputError(
                f"artifact store {self.address} must be readable, got {_reason(error)} for {name}"
            ) from error

    def write(self, content: bytes, kind: Kind) -> str:
        """Keep content in the store and return its digest."""
        digest = sha256(content)
        name = self._name(digest, kind)
        if name not in self._known:
            try:
                self.patience(lambda: self._store.write(name, io.BytesIO(content)))
            except Exception as error:
                raise not_written(
                    f"object {name} of artifact store {self.address}", OSError(0, _reason(error))
                ) from error
            self._known.add(name)
        return digest

    def _name(self, digest: str, kind: Kind) -> str:
        return f"{self._prefix}{_name_within(digest, kind)}"


class _Damaged(Exception):  # noqa: N818 - an outcome, not an error of the caller's
    """Content has another hash, which is the argument."""


def open_objects(folder: Path, artifacts: str | None, tell: Callable[[str], None] = silent) -> Objects:
    """The objects of a run.

    Args:
        folder: The run's folder, where they are unless an address says otherwise.
        artifacts: A folder, ``s3://bucket/prefix`` or ``gs://bucket/prefix``.
        tell: Called with a sentence when a store fails and is tried again.

    Raises:
        InputError: The address is none of these, or its library is not installed.
    """
    if not artifacts:
        return FolderObjects(folder)
    if "://" not in artifacts:
        return FolderObjects(expanded(artifacts, "artifacts"))
    scheme, bucket, prefix = _parts(artifacts)
    import optuna

    store: Any
    try:
        if scheme == "s3":
            import boto3
            from botocore.config import Config

            # an address like this one is asked again by `Patience`, which says so; boto's own pauses say nothing
            client = boto3.client("s3", config=Config(connect_timeout=10, read_timeout=60, retries={"max_attempts": 2}))
            store = optuna.artifacts.Boto3ArtifactStore(bucket, client=client, avoid_buf_copy=True)
        else:
            with warnings.catch_warnings():  # Optuna calls it experimental
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                store = optuna.artifacts.GCSArtifactStore(bucket)
    except ImportError as error:
        library, extra = ("boto3", "cluster") if scheme == "s3" else ("google-cloud-storage", "gcs")
        raise MissingExtraError(library, extra, f"artifacts {artifacts}") from error
    except Exception as error:  # of missing credentials and regions each library raises its own
        raise InputError(f"artifacts {artifacts} must be reachable, got {_reason(error)}") from error
    return StoredObjects(store, prefix, artifacts, tell)


def _parts(address: str) -> tuple[str, str, str]:
    """Scheme, bucket and prefix of an address."""
    match = ADDRESS.fullmatch(address)
    if match is None:
        scheme = address.split("://", 1)[0][:20]
        raise InputError(
            f"artifacts must be a folder, s3://bucket/prefix or gs://bucket/prefix without a user or a password, "
            f"got another address that begins with {scheme}://"
        )
    prefix = (match[3] or "").strip("/")
    return match[1], match[2], f"{prefix}/" if prefix else ""


def check_artifacts(address: str) -> None:
    """Raise `InputError` unless something is a folder's name or an address that `open_objects` takes."""
    if "://" in address:
        _parts(address)


def _is_passing(error: Exception) -> bool:
    """Whether an artifact store may do better at the next try: not where it refuses or has no such thing."""
    from optuna.artifacts.exceptions import ArtifactNotFound

    if isinstance(error, ArtifactNotFound | _Damaged):
        return False
    response = getattr(error, "response", None)  # of botocore's ClientError
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    status = status if status is not None else getattr(error, "code", None)  # of google.api_core's errors
    if isinstance(status, int):
        return status >= 500 or status in (408, 429)
    named = {kind.__name__ for kind in type(error).__mro__}
    return not named & {"NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "NoRegionError"}


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _name_within(digest: str, kind: Kind) -> str:
    if not (isinstance(digest, str) and len(digest) == 64 and set(digest) <= set("0123456789abcdef")):
        raise InputError(f"digest of an object must be 64 hexadecimal digits, got {str(digest)[:80]!r}")
    if kind not in KINDS:
        raise InputError(f"kind of an object must be one of {', '.join(KINDS)}, got {kind!r}")
    return f"objects/{digest[:2]}/{digest}.{kind}"


def object_path(folder: Path, digest: str, kind: Kind) -> Path:
    """``objects/<first two digits>/<digest>.<kind>`` below a run's folder.

    Raises:
        InputError: Something that is no digest, so that a damaged study cannot name other files.
    """
    return folder / _name_within(digest, kind)


def write_object(folder: Path, content: bytes, kind: Kind) -> str:
    """Keep content under its SHA-256 and return that; a whole copy that is there already is left alone."""
    digest = sha256(content)
    path = object_path(folder, digest, kind)
    if not _holds(path, digest):
        write_whole(path, content)
    return digest


def _holds(path: Path, digest: str) -> bool:
    try:
        return sha256(read_regular(path, "object", limit=LARGEST_OBJECT)) == digest
    except InputError:
        return False


def read_object(folder: Path, digest: str, kind: Kind) -> bytes:
    """The content of that hash.

    Raises:
        InputError: The file is missing, or its content has another hash; the file is named.
    """
    path = object_path(folder, digest, kind)
    content = read_regular(path, "object", limit=LARGEST_OBJECT)
    found = sha256(content)
    if found != digest:
        raise InputError(f"object {path} must have the hash in its name, got {found}: the file is damaged")
    return content
