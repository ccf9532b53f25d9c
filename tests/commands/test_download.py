import hashlib
import io
import os
import re
import subprocess
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pcea.commands import download as module
from pcea.commands.download import ARCHIVES, Archive, download
from pcea.io.atomic import temporary_folder


def make_zip(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(zipfile.ZipInfo(name), content)  # without the time: each test process makes the same
    return buffer.getvalue()


CONTENT = make_zip({"toys/train.txt": "toy " * 999, "toys/deep/test.txt": "toy", "__MACOSX/junk": "junk"})
SIZE = len(CONTENT)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers.get("Range")))
        content = server.files.get(self.path)
        if callable(content):
            content(self)
            return
        if content is None:
            self.send_error(404)
            return
        start = 0
        if server.has_ranges and (match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))):
            start = int(match[1])
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: server.break_after])


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests, server.files, server.has_ranges, server.break_after = [], {"/toys.zip": CONTENT}, True, None
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def archive(server, monkeypatch):
    """Puts a dataset `toys` into the table, by default one mirror with the right checksum."""

    def put(*urls, checksum=f"sha256:{SHA256}", size=SIZE):
        urls = urls or (f"{server.url}/toys.zip",)
        toys = Archive(urls, "toys", "train.txt", checksum=checksum, size=size, terms="Toys: be kind.")
        monkeypatch.setitem(ARCHIVES, "toys", toys)

    return put


def is_whole(root):
    """Nothing but the dataset and its checksum is left."""
    names = sorted(path.name for path in root.iterdir())
    return names == ["toys", "toys.zip.sha256"] and (root / "toys/train.txt").read_text() == "toy " * 999


@pytest.mark.parametrize(
    ("checksum", "size"),
    [(f"sha256:{SHA256}", len(CONTENT)), (f"md5:{hashlib.md5(CONTENT).hexdigest()}", None), (None, None)],
)
def test_download_and_unpack(server, archive, tmp_path, capsys, checksum, size):
    archive(checksum=checksum, size=size)
    assert download("toys", root=tmp_path / "data") == tmp_path / "data" / "toys"
    assert is_whole(tmp_path / "data")
    assert (tmp_path / "data/toys.zip.sha256").read_text() == f"{SHA256}  toys.zip\n"
    assert "be kind" in capsys.readouterr().err
    download("toys", root=tmp_path / "data")
    assert len(server.requests) == 1  # what is there is left alone


def test_an_interrupted_download_goes_on(server, archive, tmp_path):
    archive()
    (tmp_path / "toys.zip.part").write_bytes(CONTENT[:100])
    download("toys", root=tmp_path)
    assert server.requests == [("/toys.zip", "bytes=100-")]
    assert is_whole(tmp_path)


def test_a_complete_download_is_not_asked_for_again(server, archive, tmp_path):
    archive()
    (tmp_path / "toys.zip.part").write_bytes(CONTENT)
    download("toys", root=tmp_path)
    assert not server.requests
    assert is_whole(tmp_path)


def test_a_connection_that_breaks_off_is_taken_up_again(server, archive, tmp_path):
    archive()
    server.break_after = len(CONTENT) // 2 + 1
    download("toys", root=tmp_path)
    assert [requested for _, requested in server.requests] == [None, f"bytes={server.break_after}-"]
    assert is_whole(tmp_path)


def test_a_server_without_ranges_starts_afresh(server, archive, tmp_path):
    archive()
    server.has_ranges = False
    (tmp_path / "toys.zip.part").write_bytes(CONTENT[:100])
    download("toys", root=tmp_path)
    assert len(server.requests) == 1
    assert is_whole(tmp_path)


def test_a_wrong_beginning_is_thrown_away(server, archive, tmp_path):
    archive(size=None)
    for beginning in (b"x" * 100, b"x" * len(CONTENT), b"x" * (len(CONTENT) + 5)):
        (tmp_path / "toys.zip.part").write_bytes(beginning)
        download("toys", root=tmp_path)
        assert is_whole(tmp_path)
        assert server.requests[-1] == ("/toys.zip", None)
        for path in sorted(tmp_path.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()


def test_the_next_mirror_is_tried(server, archive, tmp_path):
    server.files["/bad/toys.zip"] = b"<html>Log in first</html>"
    archive(
        "http://127.0.0.1:9/toys.zip", f"{server.url}/none.zip", f"{server.url}/bad/toys.zip", f"{server.url}/toys.zip"
    )
    download("toys", root=tmp_path)
    assert is_whole(tmp_path)


def test_all_mirrors_down_says_where_to_put_which_files(server, archive, tmp_path):
    archive("http://127.0.0.1:9/toys.zip", f"{server.url}/none.zip")
    with pytest.raises(ConnectionError) as caught:
        download("toys", root=tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert re.search(
        r"Could not download toys from 127.0.0.1:9 \(.*refused.*\); 127.0.0.1:\d+ \(answered 404 Not Found\)", message
    )
    assert (
        f"put it at {tmp_path}/toys.zip, or its files (train.txt) into {tmp_path}/toys. See data/README.md" in message
    )
    assert not any(tmp_path.iterdir())


def test_a_wrong_checksum_is_refused(archive, tmp_path):
    archive(checksum="sha256:" + "0" * 64)
    with pytest.raises(ConnectionError, match=f"wrong sha256 checksum {SHA256}"):
        download("toys", root=tmp_path)
    archive(size=5)
    with pytest.raises(ConnectionError, match=f"{len(CONTENT)} bytes instead of 5"):
        download("toys", root=tmp_path)
    assert not any(tmp_path.iterdir())


def test_without_a_published_checksum_the_zip_file_is_tried(server, archive, tmp_path):
    archive(checksum=None, size=None)
    server.files["/toys.zip"] = CONTENT.replace(b"toy toy", b"toy boy", 1)
    with pytest.raises(ConnectionError, match=r"toys/train.txt is damaged|Bad CRC"):
        download("toys", root=tmp_path)
    server.files["/toys.zip"] = CONTENT[:-30]
    with pytest.raises(ConnectionError, match="not a whole zip file"):
        download("toys", root=tmp_path)


def test_a_file_put_there_by_hand_is_unpacked_and_kept(server, archive, tmp_path):
    archive()
    (tmp_path / "toys.zip").write_bytes(CONTENT)
    download("toys", root=tmp_path)
    assert not server.requests
    assert (tmp_path / "toys.zip").read_bytes() == CONTENT
    (tmp_path / "toys.zip").unlink()
    assert is_whole(tmp_path)


def test_a_wrong_file_put_there_by_hand_is_kept(archive, tmp_path):
    archive()
    (tmp_path / "toys.zip").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"toys.zip is not the archive that was published: 4 bytes instead of"):
        download("toys", root=tmp_path)
    assert (tmp_path / "toys.zip").read_bytes() == b"mine"


def damaged_inside():
    """A deflated member whose bytes cannot be inflated."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("toys/train.txt", bytes(range(256)) * 99)
    content = bytearray(buffer.getvalue())
    content[60:90] = b"\xff" * 30
    return bytes(content)


def with_link():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("toys/train.txt", "toy " * 999)
        link = zipfile.ZipInfo("toys/link")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc/hostname")
    return buffer.getvalue()


def bomb():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("toys/train.txt", bytes(80 << 20))
    return buffer.getvalue()


WRONG = [
    (damaged_inside(), "not a whole zip file .*decompressing|damaged|Bad CRC"),
    (CONTENT[:-30], "not a whole zip file"),
    (with_link(), "it holds the symbolic link 'toys/link'"),
    (bomb(), "zip bomb"),
    (make_zip({"others/train.txt": "toy"}), "it holds no folder toys"),
    *(
        (make_zip({"toys/train.txt": "toy", name: "outside"}), "it holds the unsafe path '.*outside.txt'")
        for name in ("../outside.txt", "/tmp/outside.txt", "toys/../../outside.txt", "C:\\outside.txt")
    ),
]


@pytest.mark.parametrize(("content", "reason"), WRONG)
def test_a_wrong_zip_file_is_thrown_away_and_the_next_mirror_tried(server, archive, tmp_path, content, reason):
    server.files["/wrong/toys.zip"] = content
    archive(f"{server.url}/wrong/toys.zip", checksum=None, size=None)
    with pytest.raises(ConnectionError, match=reason):
        download("toys", root=tmp_path / "data")
    assert not any((tmp_path / "data").iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    archive(f"{server.url}/wrong/toys.zip", f"{server.url}/toys.zip", checksum=None, size=None)
    (tmp_path / "data/toys.zip.part").write_bytes(content)
    download("toys", root=tmp_path / "data")
    assert is_whole(tmp_path / "data")


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(10_000):
            handler.wfile.write(bytes(1 << 16))
    except OSError:
        handler.server.stopped = True


def drip(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", str(SIZE))
    handler.end_headers()
    try:
        for i in range(100):
            handler.wfile.write(CONTENT[i : i + 1])
            time.sleep(0.05)
    except OSError:
        handler.server.stopped = True


def status(code, **headers):
    def answer(handler):
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


ODD = [
    (endless, f"sends more than {SIZE} bytes"),
    (drip, r"sent only \d+ bytes in \d seconds"),
    (status(204), "answered 204 No Content, not 200 with the file"),
    (status(206, Content_Range=f"bytes 5-9/{SIZE}"), r"answered 206 Partial Content with bytes 5-9/\d+, not 200"),
    (status(300), "answered 300 Multiple Choices"),
    (status(416), "answered 416 Requested Range Not Satisfiable"),
    (status(503), "answered 503 Service Unavailable"),
    (status(200, Content_Type="text/html; charset=utf-8"), "sent a web page instead of the file"),
    (status(302, Location="ftp://127.0.0.1:9/toys.zip"), "127.0.0.1"),
    (status(302, Location="file:///etc/hostname"), "127.0.0.1"),
    (b"x" * (SIZE + 1), f"announces {SIZE + 1} bytes instead of {SIZE}"),
]


@pytest.mark.parametrize(("answer", "reason"), ODD)
def test_an_odd_answer_says_what_came_and_the_next_mirror_is_tried(
    server, archive, tmp_path, monkeypatch, answer, reason
):
    monkeypatch.setattr(module, "TIMEOUT", 1)
    server.files["/odd/toys.zip"] = answer
    archive(f"{server.url}/odd/toys.zip")
    with pytest.raises(ConnectionError, match=reason):
        download("toys", root=tmp_path)
    archive(f"{server.url}/odd/toys.zip", f"{server.url}/toys.zip")
    download("toys", root=tmp_path)
    assert is_whole(tmp_path)


def test_the_rest_of_another_place_is_not_taken_for_the_file(server, archive, tmp_path):
    archive()
    server.files["/toys.zip"] = status(206, Content_Range=f"bytes 7-{SIZE - 1}/{SIZE}")
    (tmp_path / "toys.zip.part").write_bytes(CONTENT[:100])
    with pytest.raises(
        ConnectionError, match=r"answered 206 .* bytes 7-.*, not 200 with the file or 206 from byte 100"
    ):
        download("toys", root=tmp_path)
    assert (tmp_path / "toys.zip.part").read_bytes() == CONTENT[:100]  # the beginning is still good


def test_links_are_not_written_through(server, archive, tmp_path):
    archive()
    (tmp_path / "precious").write_bytes(b"mine")
    (tmp_path / "toys.zip.part").symlink_to(tmp_path / "precious")
    with pytest.raises(FileExistsError, match=r"toys.zip.part is not a plain file.* Remove it"):
        download("toys", root=tmp_path)
    (tmp_path / "toys.zip.part").unlink()
    (tmp_path / "toys.zip.sha256").symlink_to(tmp_path / "precious")
    download("toys", root=tmp_path)
    assert (tmp_path / "precious").read_bytes() == b"mine"
    assert not (tmp_path / "toys.zip.sha256").is_symlink()


def test_a_full_disk_does_not_blame_the_mirrors(server, archive, tmp_path, monkeypatch):
    def fill_disk(*_):
        raise OSError(28, "No space left on device")

    archive()
    monkeypatch.setattr(module, "_fetch_once", fill_disk)
    with pytest.raises(OSError, match="No space left") as caught:
        download("toys", root=tmp_path)
    assert not isinstance(caught.value, ConnectionError)


def test_a_killed_unpacking_is_cleaned_up(archive, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with temporary_folder(tmp_path) as mine:
        name = Path(mine).name.replace(str(os.getpid()), str(process.pid))
    (tmp_path / name / "toys").mkdir(parents=True)
    archive()
    download("toys", root=tmp_path)
    assert is_whole(tmp_path)


def test_nothing_is_half_unpacked(archive, tmp_path, monkeypatch):
    def fill_disk(self, path):
        (path / "toys").mkdir()
        raise OSError(28, "No space left on device")

    archive()
    monkeypatch.setattr(zipfile.ZipFile, "extractall", fill_disk)
    with pytest.raises(OSError, match="No space left"):
        download("toys", root=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["toys.zip"]


def test_an_unknown_name_lists_the_known(tmp_path):
    with pytest.raises(ValueError, match=r"No dataset 'toys' to download; there are modelnet40, modelnet40_normals"):
        download("toys", root=tmp_path)


def test_the_table_is_well_formed():
    for archive in ARCHIVES.values():
        assert archive.terms
        assert archive.files
        assert len({module._file_name(url) for url in archive.urls}) == 1
        if archive.checksum:
            kind, digest = archive.checksum.split(":")
            assert len(digest) == 2 * hashlib.new(kind).digest_size
