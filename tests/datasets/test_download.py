"""A published file is in the cache folder whole and checked, or not at all."""

import dataclasses
import errno
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from gpu_als.datasets import cache, download
from gpu_als.datasets.cache import cache_folder, fetch
from gpu_als.errors import DownloadError, GpuAlsError, InputError, ReadError
from gpu_als.progress import ProgressBar

CONTENT = np.random.default_rng(11).bytes(300_000)
WAIT = 300


@pytest.fixture
def server(serve):
    return serve(CONTENT)


@pytest.fixture
def get(server, tmp_path):
    """Return a function that fetches what the server publishes into a folder."""
    published = server.published()

    def fetch_it(**options):
        defaults = {"url": None, "cache_dir": tmp_path / "cache", "show_progress": False}
        return fetch(published, **(defaults | options))

    return fetch_it


@pytest.fixture
def part(tmp_path):
    """Return where the bytes of an unfinished download are."""
    return tmp_path / "cache" / "ml-100k.zip.part"


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def leave(part, content):
    part.parent.mkdir()
    part.write_bytes(content)


def test_a_download_is_complete_and_alone_in_the_cache_folder(server, get, tmp_path):
    path = get()
    assert path == tmp_path / "cache" / "ml-100k.zip"
    assert path.read_bytes() == CONTENT
    assert visible(path.parent) == ["ml-100k.zip"]
    assert [request["Range"] for request in server.requests] == [None]


def test_a_file_in_the_cache_folder_is_not_asked_for(server, get):
    path = get()
    server.requests.clear()
    assert get(url="http://127.0.0.1:9/elsewhere.zip") == path
    assert server.requests == []


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:-1] + b"?", CONTENT + b"?", b""])
def test_another_file_in_the_cache_folder_is_refused_and_kept(server, get, tmp_path, content):
    path = tmp_path / "cache" / "ml-100k.zip"
    leave(path, content)
    with pytest.raises(ReadError, match=r"ml-100k\.zip: not the file published at .* delete it"):
        get()
    assert path.read_bytes() == content
    assert server.requests == []


def test_a_broken_download_goes_on_where_it_stopped(server, get, part):
    server.cuts = [100_000]
    with pytest.raises(DownloadError, match=r"ended after 100000 of 300000 bytes; call again"):
        get()
    assert visible(part.parent) == ["ml-100k.zip.part", "ml-100k.zip.part.etag"]
    assert get().read_bytes() == CONTENT
    first, second = server.requests
    assert first["Range"] is None
    assert (second["Range"], second["If-Range"]) == ("bytes=100000-", '"one"')
    assert server.n_sent == len(CONTENT)
    assert visible(part.parent) == ["ml-100k.zip"]


def test_a_file_that_has_changed_since_is_downloaded_from_the_start(server, get):
    server.content, server.etag = bytes(len(CONTENT)), '"before"'
    server.cuts = [100_000]
    with pytest.raises(DownloadError):
        get()
    server.content, server.etag = CONTENT, '"now"'
    assert get().read_bytes() == CONTENT
    assert server.requests[1]["If-Range"] == '"before"'


@pytest.mark.parametrize("ranges", ["ignored", "refused", "wrong"])
def test_a_server_without_ranges_serves_from_the_start(server, get, ranges):
    server.ranges = ranges
    server.cuts = [100_000]
    with pytest.raises(DownloadError):
        get()
    assert get().read_bytes() == CONTENT
    assert server.requests[1]["Range"] == "bytes=100000-"
    assert server.requests[-1]["Range"] is None or ranges == "ignored"


@pytest.mark.parametrize("stale", [bytes(100_000), bytes(len(CONTENT))])
def test_a_stale_part_with_other_bytes_costs_one_attempt(server, get, part, stale):
    leave(part, stale)
    with pytest.raises(DownloadError, match="it was removed"):
        get()
    assert visible(part.parent) == []
    assert get().read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing_behind_and_the_next_attempt_works(server, get, tmp_path):
    server.content = CONTENT[:-1] + b"?"
    with pytest.raises(DownloadError, match=r"MD5 [0-9a-f]{32}, where .* [0-9a-f]{32}; it was rem"):
        get()
    assert visible(tmp_path / "cache") == []
    server.content = CONTENT
    assert get().read_bytes() == CONTENT


def test_a_file_of_another_size_is_refused_before_it_is_received(server, get, part):
    server.content = b"<html>please log in</html>"
    with pytest.raises(DownloadError, match=r"found a file of 26 bytes, where .* has 300000; pass"):
        get()
    assert not part.exists()


def test_an_endless_body_is_cut_at_the_size_of_the_file(server, get, tmp_path):
    server.content, server.chatty = b"", True
    with pytest.raises(DownloadError, match="MD5"):
        get()
    assert visible(tmp_path / "cache") == []


def test_no_connection_names_the_address_and_where_to_put_the_file(tmp_path, server, get):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/ml-100k.zip"
    with pytest.raises(DownloadError) as caught:
        get(url=url)
    message = str(caught.value)
    assert message.startswith(url)
    assert "the download failed ([Errno" in message
    assert "refused" in message
    assert f"put the file at {tmp_path / 'cache' / 'ml-100k.zip'}" in message
    assert isinstance(caught.value, GpuAlsError)
    assert isinstance(caught.value, OSError)


def test_a_server_that_falls_silent_is_given_up(server, get, monkeypatch):
    monkeypatch.setattr(download, "_TIMEOUT", 0.1)
    server.gate = threading.Event()
    with pytest.raises(DownloadError, match="timed out"):
        get()


def test_an_interrupted_download_goes_on_where_it_stopped(server, get, part, monkeypatch):
    def interrupt(self, count):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ProgressBar, "update", interrupt)
        with pytest.raises(KeyboardInterrupt):
            get()
    received = part.read_bytes()
    assert received
    assert received == CONTENT[: len(received)]
    assert get().read_bytes() == CONTENT
    assert server.requests[1]["Range"] == f"bytes={len(received)}-"


def test_a_disk_that_takes_no_more_is_no_fault_of_the_network(server, get, part):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as caught:
            get()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not isinstance(caught.value, DownloadError)
    assert visible(part.parent) == ["ml-100k.zip.part", "ml-100k.zip.part.etag"]
    assert get().read_bytes() == CONTENT
    assert server.requests[1]["Range"] == "bytes=100000-"


FETCH = """
import sys
import threading
from gpu_als.datasets import cache
from gpu_als.progress import ProgressBar
url, size, md5, folder, kill = sys.argv[1:]
if kill == "kill":
    import os, signal
    received = 0
    def update(self, count):
        global received
        received += count
        if received > 150_000:
            os.kill(os.getpid(), signal.SIGKILL)
    ProgressBar.update = update
published = cache.PublishedFile(url, int(size), md5)
cache.fetch(published, url=None, cache_dir=folder, show_progress=True)
"""


def start_process(published, folder, then="finish"):
    arguments = [*map(str, dataclasses.astuple(published)), str(folder), then]
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, *arguments], stderr=subprocess.PIPE, text=True
    )


def test_a_killed_process_leaves_no_file_and_no_lock(server, get, part):
    with start_process(server.published(), part.parent, "kill") as process:
        process.communicate(timeout=WAIT)
    assert process.returncode == -signal.SIGKILL
    assert visible(part.parent) == ["ml-100k.zip.part", "ml-100k.zip.part.etag"]
    received = part.stat().st_size
    assert 100_000 < received < len(CONTENT)
    assert get().read_bytes() == CONTENT
    assert server.requests[1]["Range"] == f"bytes={received}-"


@pytest.mark.skipif(cache.fcntl is None, reason="no file locks here")
def test_a_second_process_waits_for_the_first(server, tmp_path):
    server.gate = threading.Event()
    with start_process(server.published(), tmp_path) as first:
        assert server.arrived.wait(WAIT)
        with start_process(server.published(), tmp_path) as second:
            assert second.stderr.readline() == (
                "waiting for another process that is downloading ml-100k.zip\n"
            )
            server.gate.set()
            assert second.wait(WAIT) == first.wait(WAIT) == 0
            second.stderr.read(), first.stderr.read()
    assert (tmp_path / "ml-100k.zip").read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_the_progress_bar_is_shown_or_hidden(server, get, capfd, tmp_path):
    get(cache_dir=tmp_path / "hidden", show_progress=False)
    assert capfd.readouterr() == ("", "")
    get(cache_dir=tmp_path / "shown", show_progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "ml-100k.zip: 100%" in err
    assert "300k/300k" in err


@pytest.mark.parametrize("url", ["ftp://host/a.zip", "file:///etc/passwd", "ml-100k.zip", 7])
def test_only_http_addresses_are_opened(get, tmp_path, url):
    with pytest.raises(InputError, match=r"url: found .*; pass an address"):
        get(url=url)
    assert not (tmp_path / "cache").exists()


def test_the_cache_folder_is_the_first_that_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("GPU_ALS_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "gpu_als"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "gpu_als"
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
    assert cache_folder() == Path("/shared/gpu_als")
    monkeypatch.setenv("GPU_ALS_CACHE", "~/own")
    assert cache_folder() == tmp_path / "own"
    monkeypatch.setenv("GPU_ALS_CACHE", "")
    assert cache_folder() == Path("/shared/gpu_als")
    assert cache_folder("~/mine") == tmp_path / "mine"
    assert cache_folder(tmp_path) == tmp_path


def test_the_environment_names_the_folder_a_download_goes_to(server, get, monkeypatch, tmp_path):
    monkeypatch.setenv("GPU_ALS_CACHE", str(tmp_path / "own"))
    assert get(cache_dir=None) == tmp_path / "own" / "ml-100k.zip"


def test_importing_downloads_nothing_and_makes_no_folder(tmp_path):
    code = """
import socket
def refuse(*args):
    raise AssertionError("a connection was opened")
socket.socket.connect = socket.getaddrinfo = refuse
from gpu_als import datasets
assert datasets.movielens and datasets.lastfm
"""
    folder = tmp_path / "cache"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=os.environ | {"GPU_ALS_CACHE": str(folder)}
    )
    assert not folder.exists()
