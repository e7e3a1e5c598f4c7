"""What went wrong with a remote, whichever driver reports it: worth another try, or one clear error.

Drivers raise their own exceptions (botocore, aiohttp, gcsfs, asyncssh), which are recognised here by class name and
HTTP status, so that no driver has to be installed for the others to work.
"""

import asyncio
import sys
from collections.abc import Iterator
from typing import Literal

from store.errors import DamagedFile, IncompleteCache, StoreError, Unreachable

Fault = Literal["missing", "no bucket", "short", "denied", "no credentials", "transient", "refused"]

_DRIVER_ERRORS = {
    "aiohttp": ("ClientError",),
    "asyncssh": ("Error",),
    "botocore.exceptions": ("BotoCoreError", "ClientError"),
    "gcsfs.retry": ("HttpError",),
    "google.auth.exceptions": ("GoogleAuthError",),
    "paramiko": ("SSHException",),
}
# Sets of names, one to a word.
_NO_CREDENTIALS = """
    NoCredentialsError PartialCredentialsError ProfileNotFound CredentialRetrievalError TokenRetrievalError SSOError
    SSOTokenLoadError UnauthorizedSSOTokenError ConfigNotFound ConfigParseError DefaultCredentialsError RefreshError
    PermissionDenied HostKeyNotVerifiable AuthenticationException
"""
_TRANSIENT = """
    HTTPClientError EndpointConnectionError ConnectTimeoutError ReadTimeoutError ConnectionClosedError
    ProxyConnectionError ResponseStreamingError IncompleteReadError ClientPayloadError ServerDisconnectedError
    ClientConnectionError ClientOSError ServerTimeoutError ConnectionLost ChannelOpenError FSTimeoutError
    ProxyError
"""
_PERMANENT = "SSLError ClientConnectorCertificateError ClientConnectorSSLError"
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "ssh": "sshfs", "sftp": "sshfs"}
_PACKAGES |= {"az": "adlfs", "abfs": "adlfs", "http": "aiohttp", "https": "aiohttp"}
_CREDENTIALS = {
    "s3fs": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_ENDPOINT_URL for a server that "
    "is not AWS; for a public bucket set FSSPEC_S3='{\"anon\": true}'",
    "gcsfs": "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
    "adlfs": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    "sshfs": "have `ssh` reach the host without a password: its host key in ~/.ssh/known_hosts, your key in the agent",
    "aiohttp": 'set FSSPEC_HTTPS=\'{"client_kwargs": {"headers": {"Authorization": ...}}}\' if the server wants it',
}


def driver_errors() -> tuple[type[BaseException], ...]:
    """Every exception that the drivers imported so far raise for what is wrong outside the program."""
    found: list[type[BaseException]] = [OSError, asyncio.TimeoutError]
    for module, names in _DRIVER_ERRORS.items():
        if module in sys.modules:
            found += [getattr(sys.modules[module], name) for name in names]
    return tuple(found)


def classify(error: BaseException) -> Fault:
    """What kind of fault an exception of `driver_errors` is."""
    chain = list(_causes(error))
    names = {kind.__name__ for cause in chain for kind in type(cause).__mro__}
    status = next((got for cause in chain if (got := _http_status(cause)) is not None), None)
    if "NoSuchBucket" in (_code(cause) for cause in chain):
        return "no bucket"
    missing = isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError))
    if missing and status is None and isinstance(cause := error.__cause__, driver_errors()):
        fault = classify(cause)  # fsspec's http says so of whatever went wrong
        if fault != "refused" or type(cause).__module__.startswith("aiohttp"):
            return fault
    if status in (404, 410) or (missing and status is None):
        return "missing"
    if status == 416:
        return "short"
    if names & set(_NO_CREDENTIALS.split()) or status == 401:
        return "no credentials"
    if status == 403 or isinstance(error, PermissionError) or str(error).startswith("Forbidden: "):  # the last: gcsfs
        return "denied"
    if names & set(_PERMANENT.split()):
        return "refused"
    if status is not None:
        return "transient" if status in (408, 429) or status >= 500 else "refused"
    if names & set(_TRANSIENT.split()) or isinstance(error, (ConnectionError, TimeoutError, asyncio.TimeoutError)):
        return "transient"
    return "refused"


def explain(fault: Fault, error: BaseException, *, where: str, protocol: str, tries: int) -> StoreError:
    """The one error that a person sees: expected, got, where, what to do."""
    package = _PACKAGES.get(protocol, "")
    credentials = _CREDENTIALS.get(package, "see the documentation of fsspec's driver for this protocol")
    got = _on_one_line(error)
    if fault == "missing":
        return IncompleteCache(
            f"expected the file {where}, found none: the cache is not there, misspelled, or only partly uploaded. "
            "Check the address, or upload what is missing"
        )
    if fault == "no bucket":
        return IncompleteCache(
            f"expected a bucket that holds {where}, found no such bucket. Check its name, and the endpoint you asked"
        )
    if fault == "short":
        return DamagedFile(
            f"expected more bytes in {where}, which ends before the range that its manifest or index states ({got}). "
            "The file was cut short: upload it again"
        )
    if fault == "no credentials":
        return Unreachable(f"expected credentials for {where}, got none that work ({got}). To go on, {credentials}")
    if fault == "denied":
        hint = " (S3 also says so of a missing file when you may not list the bucket)" if package == "s3fs" else ""
        return Unreachable(
            f"expected to be allowed to read {where}, was refused ({got}){hint}. Ask for access, or {credentials}"
        )
    if fault == "transient":
        return Unreachable(
            f"expected an answer for {where}, got none in {tries} tries ({got}). "
            "Check the network, the endpoint and its load, then run this again: it continues"
        )
    return Unreachable(f"could not read {where}: {got}. Check the address and the endpoint; {credentials}")


def no_driver(protocol: str, url: str) -> StoreError:
    """The error of a URL whose driver is not installed."""
    package = _PACKAGES.get(protocol, "the fsspec driver for it")
    return Unreachable(
        f"expected a package that reads {protocol}:// for {url}, found none that imports. "
        f"Install {package}: `pip install {package}` (the version that fits the installed fsspec)"
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    for _ in range(8):
        if current is None:
            return
        yield current
        current = current.__cause__


def _http_status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)  # botocore
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status if isinstance(status, int) else None
    named = {"ClientResponseError": "status", "HttpError": "code"}  # aiohttp, gcsfs; other codes are no HTTP statuses
    for kind in type(error).__mro__:
        status = getattr(error, named[kind.__name__], None) if kind.__name__ in named else None
        if isinstance(status, (int, str)) and str(status).isdigit():
            return int(status)
    return None


def _code(error: BaseException) -> str | None:
    response = getattr(error, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None


def _on_one_line(error: BaseException) -> str:
    """The driver's message, at most 300 characters of it."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:300]}" if words else type(error).__name__
