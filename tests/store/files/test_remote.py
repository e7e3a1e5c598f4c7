"""Remote caches through real drivers: HTTP and S3 from a server on this machine that can be told to misbehave, moto as
a second opinion on S3, ssh from a real SSH server."""

import asyncio
import itertools
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import asyncssh
import fsspec
import pytest

from store.cache.paths import MANIFEST_FILE
from store.errors import DamagedFile, IncompleteCache, StoreError, Unreachable
from store.files import remote
from store.files.open import CachePlace, open_files
from store.files.protocol import Files
from store.files.remote_errors import classify
from tests.faults.emulated_s3 import Fault, ObjectServer, Request, emulated_s3, reach

ROOT = Path(__file__).parents[3]
SHARD = "blocks.1.hook_resid_post/c/0/0"

pytestmark = pytest.mark.filterwarnings(
    # botocore and moto, not ours.
    "ignore:datetime.datetime.utcnow:DeprecationWarning"
)


def first_times(num: int, fault: Fault) -> Callable[[Request], Fault]:
    """Goes wrong for the first `num` requests."""
    left = [fault] * num
    return lambda request: left.pop() if left else None


def shard_nbytes(cache_folder: Path) -> int:
    return (cache_folder / SHARD).stat().st_size


def test_files_and_ranges_are_those_of_the_folder(bucket: ObjectServer, bucket_url: str, cache_folder: Path) -> None:
    files = open_files(bucket_url)
    local = (cache_folder / SHARD).read_bytes()
    assert files.location == bucket_url
    assert files.read(MANIFEST_FILE) == (cache_folder / MANIFEST_FILE).read_bytes()
    assert files.size(SHARD) == len(local)
    assert files.size("nothing") is None
    bucket.requests.clear()
    reader = files.open_range(SHARD, len(local))
    assert bucket.requests == []  # opening asks nothing: there may be thousands of shards
    assert reader.read(10, 100).tobytes() == local[10:110]
    assert reader.read(len(local) - 20, 20).tobytes() == local[-20:]
    assert reader.read(5, 0).tobytes() == b""
    assert bucket.requests == [Request(SHARD, 10, 110), Request(SHARD, len(local) - 20, len(local))]


def test_many_threads_read_at_once(bucket_url: str, cache_folder: Path) -> None:
    local = (cache_folder / SHARD).read_bytes()
    reader = open_files(bucket_url).open_range(SHARD, len(local))
    with ThreadPoolExecutor(16) as threads:
        pieces = list(threads.map(lambda start: reader.read(start, 50).tobytes(), range(0, 3200, 50)))
    assert b"".join(pieces) == local[:3200]


def test_all_files_are_listed_where_that_is_possible(bucket: ObjectServer, cache_folder: Path) -> None:
    there = reach(bucket.endpoint)
    assert open_files(there.url).sizes() == open_files(cache_folder).sizes()
    assert open_files(there.http_url).sizes() is None
    bucket.listing = False  # a policy that allows reading and not listing
    assert open_files(there.url).sizes() is None


@pytest.mark.parametrize("fault", ["unavailable", "cut"])
def test_a_fault_that_passes_is_not_noticed(
    bucket: ObjectServer, bucket_url: str, cache_folder: Path, fault: Fault
) -> None:
    files = open_files(bucket_url)
    bucket.fault = first_times(remote.TRIES - 1, fault)
    reader = files.open_range(SHARD, shard_nbytes(cache_folder))
    assert reader.read(10, 1000).tobytes() == (cache_folder / SHARD).read_bytes()[10:1010]
    assert len(bucket.requests) == remote.TRIES


def test_a_fault_that_stays_is_one_error(bucket: ObjectServer, bucket_url: str, cache_folder: Path) -> None:
    bucket.fault = lambda request: "unavailable"
    with pytest.raises(Unreachable) as error:
        open_files(bucket_url).open_range(SHARD, shard_nbytes(cache_folder)).read(0, 10)
    assert len(bucket.requests) == remote.TRIES
    message = str(error.value)
    assert message.startswith(f"expected an answer for {bucket_url}/{SHARD}, got none in 5 tries (")
    assert message.endswith("Check the network, the endpoint and its load, then run this again: it continues")


def test_a_refusal_is_not_tried_again(bucket: ObjectServer, bucket_url: str) -> None:
    bucket.fault = lambda request: "refused"
    with pytest.raises(Unreachable, match=f"expected to be allowed to read {bucket_url}/{MANIFEST_FILE}, was refused"):
        open_files(bucket_url).read(MANIFEST_FILE)
    assert len(bucket.requests) == 1


def test_a_missing_object_is_named(bucket_url: str) -> None:
    for read in (
        lambda: open_files(bucket_url).read("shards/7.json"),
        lambda: open_files(bucket_url).open_range("a", 9).read(0, 9),
    ):
        with pytest.raises(IncompleteCache, match=f"expected the file {bucket_url}/(shards/7.json|a), found none"):
            read()


def test_a_missing_bucket_is_named(bucket: ObjectServer) -> None:
    with pytest.raises(
        IncompleteCache, match=r"expected a bucket that holds s3://bukcet/cache/manifest.json, found no"
    ):
        open_files("s3://bukcet/cache").read(MANIFEST_FILE)


def test_an_object_that_was_cut_short_is_named(
    make_cache: Callable[..., Path], bucket: ObjectServer, bucket_url: str
) -> None:
    bucket.folder = make_cache()
    path = bucket.folder / SHARD
    nbytes = path.stat().st_size
    path.write_bytes(path.read_bytes()[:1000])
    reader = open_files(bucket_url).open_range(SHARD, nbytes)
    with pytest.raises(
        DamagedFile, match=f"expected 200 bytes at 900 of {bucket_url}/{SHARD}, got 100: the file was cut"
    ):
        reader.read(900, 200)
    with pytest.raises(DamagedFile, match=f"expected more bytes in {bucket_url}/{SHARD}, which ends before the range"):
        reader.read(1000, 200)
    with pytest.raises(DamagedFile, match=f"inside {bucket_url}/{SHARD}, which has {nbytes}"):
        reader.read(nbytes - 10, 11)


def test_a_dead_endpoint_is_one_error_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        dead = reach(f"http://127.0.0.1:{unused.getsockname()[1]}")
        for name, value in dead.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(remote, "BACKOFF_SECONDS", 0.01)
        for bucket_url in (dead.url, dead.http_url):
            with pytest.raises(
                Unreachable, match=f"expected an answer for {bucket_url}/{MANIFEST_FILE}, got none in 5 tries"
            ):
                open_files(bucket_url).read(MANIFEST_FILE)


def test_a_server_that_does_not_answer_is_given_up(
    bucket: ObjectServer, bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(remote, "PATIENCE_SECONDS", 0.5)
    # A clock of its own: 0.2 s for each look at it, however busy the machine is. The third try ends after 0.6 s.
    clock = SimpleNamespace(monotonic=itertools.count(0.0, 0.2).__next__, sleep=time.sleep)
    monkeypatch.setattr(remote, "time", clock)
    bucket.fault = lambda request: "silent"
    with pytest.raises(Unreachable, match=r"expected an answer for .*, got none in 3 tries"):
        open_files(bucket_url).open_range(SHARD, 100).read(0, 10)


def test_the_stated_bounds_add_up_to_half_a_minute_and_three_quarters() -> None:
    pauses = sum(remote.BACKOFF_SECONDS * 2**tries for tries in range(remote.TRIES - 1))
    refused = remote.TRIES * remote.CONNECT_SECONDS + pauses  # an address that swallows packets
    silent = remote.PATIENCE_SECONDS + remote.SILENCE_SECONDS + pauses
    assert refused == 28.75  # 5 tries of 5 s, pauses of at most 0.25 + 0.5 + 1 + 2 s
    assert silent == 48.75  # a try that begins after 30 s and waits for 15 s


def test_missing_credentials_are_one_error_that_says_what_to_set(
    bucket: ObjectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    bucket_url = reach(bucket.endpoint).url
    with pytest.raises(
        Unreachable, match=f"expected credentials for {bucket_url}/{MANIFEST_FILE}, .*set AWS_PROFILE, or"
    ):
        open_files(bucket_url).read(MANIFEST_FILE)
    monkeypatch.setenv("AWS_PROFILE", "colleague")
    with pytest.raises(Unreachable, match=r"profile \(colleague\) could not be found"):
        open_files(bucket_url).read(MANIFEST_FILE)
    credentials = tmp_path / "credentials"
    credentials.write_text("[colleague]\naws_access_key_id = emulated\naws_secret_access_key = emulated\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    assert json.loads(open_files(bucket_url).read(MANIFEST_FILE))["num_sequences"] == 41


def test_no_secret_is_in_messages_or_logs(
    bucket: ObjectServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sesame")
    bucket.fault = lambda request: "refused"
    with caplog.at_level(logging.INFO), pytest.raises(Unreachable) as error:
        open_files(reach(bucket.endpoint).url).read(MANIFEST_FILE)
    assert "sesame" not in f"{error.value} {caplog.text}"
    for bucket_url in (
        "https://me:sesame@host/cache",
        "s3://key:sesame@bucket/cache",
        "https://host/cache?token=sesame",
    ):
        with pytest.raises(StoreError, match="expected the plain URL of a cache's folder, got") as refused:
            open_files(bucket_url)
        assert "sesame" not in str(refused.value)


def test_a_driver_that_is_not_installed_is_named() -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(Unreachable, match=r"expected a package that reads gs:// for gs://b/cache, .*pip install gcsfs"):
        open_files("gs://b/cache").read(MANIFEST_FILE)
    with pytest.raises(StoreError, match=r"expected a URL that fsspec can read .*, got gopher://host/cache"):
        open_files("gopher://host/cache").read(MANIFEST_FILE)


def test_ranges_are_asked_for_once_and_kept_for_the_next_run(
    bucket: ObjectServer, bucket_url: str, cache_folder: Path, tmp_path: Path
) -> None:
    nbytes = shard_nbytes(cache_folder)
    for _ in range(2):  # two runs
        reader = CachePlace(bucket_url, range_cache=tmp_path).open().open_range(SHARD, nbytes, sha256="ab" * 32)
        for _ in range(2):  # two epochs
            assert reader.read(10, 100).tobytes() == (cache_folder / SHARD).read_bytes()[10:110]
    assert bucket.requests == [Request(SHARD, 10, 110)]


def test_a_range_that_was_damaged_on_its_way_is_forgotten_and_read_again(
    bucket: ObjectServer, bucket_url: str, cache_folder: Path, tmp_path: Path
) -> None:
    files = CachePlace(bucket_url, range_cache=tmp_path).open()
    reader = files.open_range(SHARD, shard_nbytes(cache_folder), sha256="ab" * 32)
    bucket.fault = first_times(1, "flipped")
    right = (cache_folder / SHARD).read_bytes()[10:110]
    assert reader.read(10, 100).tobytes() != right
    assert files.forget(SHARD, 10)
    assert reader.read(10, 100).tobytes() == right
    assert reader.read(10, 100).tobytes() == right
    assert len(bucket.requests) == 2


def test_a_server_without_ranges_is_refused(monkeypatch: pytest.MonkeyPatch, bucket: ObjectServer) -> None:
    monkeypatch.setattr(bucket, "ranges", False)
    with pytest.raises(StoreError, match=r"expected 10 bytes at 5 of .*: the server does not answer range requests"):
        open_files(reach(bucket.endpoint).http_url).open_range(SHARD, 1000).read(5, 10)


def test_a_forked_process_reads_for_itself(bucket: ObjectServer) -> None:
    script = (
        "import os, sys, threading\n"
        "from store.files.open import open_files\n"
        "files = open_files(sys.argv[1])\n"
        "want = files.read('manifest.json')\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if files.read('manifest.json') == want else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", script, reach(bucket.endpoint).url]
    subprocess.run(command, check=True, timeout=60, env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_the_emulated_bucket_is_a_process_with_latency(cache_folder: Path) -> None:
    before = os.environ.get("AWS_ENDPOINT_URL")
    with emulated_s3(cache_folder, latency_ms=50) as there:
        files = open_files(there.url)
        files.read(MANIFEST_FILE)
        begin = time.monotonic()
        files.read(MANIFEST_FILE)
        assert time.monotonic() - begin >= 0.05
    assert os.environ.get("AWS_ENDPOINT_URL") == before


def test_other_protocols_of_fsspec_work_too(cache_folder: Path) -> None:
    local = (cache_folder / SHARD).read_bytes()
    memory = fsspec.filesystem("memory")
    folder = f"/{uuid.uuid4().hex}"
    memory.pipe(f"{folder}/{SHARD}", local)
    for files in (open_files(f"memory:/{folder}"), open_files(f"file://{cache_folder}")):
        assert files.open_range(SHARD, len(local)).read(3, 30).tobytes() == local[3:33]
        sizes = files.sizes()
        assert sizes is not None
        assert sizes[SHARD] == len(local)
        with pytest.raises(IncompleteCache, match="nothing, found none"):
            files.read("nothing")


@pytest.fixture
def ssh_port(cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A real SSH server that shows the cache as /cache; fsspec is configured with its host key and ours."""
    host_key, user_key = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    user_key.write_private_key(tmp_path / "key")
    user_key.write_public_key(tmp_path / "authorized_keys")
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    async def listen() -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[host_key],
            authorized_client_keys=str(tmp_path / "authorized_keys"),
            sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=str(cache_folder.parent)),
        )

    acceptor = asyncio.run_coroutine_threadsafe(listen(), loop).result(30)
    port = acceptor.get_port()
    (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key.export_public_key().decode()}")
    ours = {"known_hosts": str(tmp_path / "known_hosts"), "client_keys": [str(tmp_path / "key")]}
    monkeypatch.setitem(fsspec.config.conf, "ssh", ours)
    yield port
    loop.call_soon_threadsafe(acceptor.close)  # the loop runs on, so that connections can end when clients let go


def test_a_cache_is_read_over_ssh(ssh_port: int, cache_folder: Path) -> None:
    files = open_files(f"ssh://reader@127.0.0.1:{ssh_port}/cache")
    local = (cache_folder / SHARD).read_bytes()
    assert files.read(MANIFEST_FILE) == (cache_folder / MANIFEST_FILE).read_bytes()
    assert files.open_range(SHARD, len(local)).read(10, 100).tobytes() == local[10:110]
    assert files.size(SHARD) == len(local)
    assert files.size("nothing") is None
    assert files.sizes() is None
    with pytest.raises(IncompleteCache, match="cache/nothing, found none"):
        files.read("nothing")


def test_an_ssh_host_that_is_not_known_is_refused(ssh_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(fsspec.config.conf["ssh"], "known_hosts")
    with pytest.raises(Unreachable, match=r"expected credentials for ssh://.*its host key in ~/.ssh/known_hosts"):
        open_files(f"ssh://reader@127.0.0.1:{ssh_port}/cache").read(MANIFEST_FILE)


@pytest.fixture(scope="module")
def moto_endpoint() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def test_a_cache_uploaded_to_an_independent_s3_reads_the_same(
    moto_endpoint: str, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in reach(moto_endpoint).environment.items():
        monkeypatch.setenv(name, value)
    uploader = fsspec.filesystem("s3", skip_instance_cache=True)
    uploader.mkdir("shared-bucket")
    uploader.put(str(cache_folder), "shared-bucket/toy", recursive=True)
    files: Files = open_files("s3://shared-bucket/toy")
    local = open_files(cache_folder)
    assert files.sizes() == local.sizes()
    manifest = json.loads(files.read(MANIFEST_FILE))
    for name, record in manifest["files"].items():
        expected = local.read(name)
        assert files.open_range(name, record["nbytes"]).read(1, len(expected) - 1).tobytes() == expected[1:], name
    with pytest.raises(IncompleteCache, match=r"expected the file s3://shared-bucket/toy/gone, found none"):
        files.read("gone")
    with pytest.raises(IncompleteCache, match=r"expected a bucket that holds s3://no-such-bucket/toy/gone"):
        open_files("s3://no-such-bucket/toy").read("gone")
    with pytest.raises(DamagedFile, match="which ends before the range"):
        files.open_range(SHARD, 10**9).read(10**8, 10)


@pytest.mark.parametrize(
    ("cause", "fault"),
    [
        (ConnectionRefusedError("refused"), "transient"),
        (TimeoutError(), "transient"),
        (PermissionError("no"), "denied"),
        (KeyError("name"), "missing"),  # fsspec's memory
        (FileNotFoundError("gone"), "missing"),
        (None, "missing"),
    ],
)
def test_a_file_is_missing_only_where_nothing_else_was_wrong(cause: Exception | None, fault: str) -> None:
    """fsspec's http says FileNotFoundError for every failure, and names what it was as the cause."""
    error = FileNotFoundError("http://host/cache/manifest.json")
    error.__cause__ = cause
    assert classify(error) == fault


def test_the_size_of_a_file_on_a_server_that_is_down_is_an_error_and_not_missing(
    bucket: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BACKOFF_SECONDS", 0.01)
    files = open_files(reach(bucket.endpoint).http_url)
    assert files.size("gone.json") is None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(Unreachable, match="got none in 5 tries"):
        open_files(f"http://127.0.0.1:{port}/cache").size(MANIFEST_FILE)
