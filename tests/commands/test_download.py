import hashlib
import io
import re
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pcea.commands import download as module
from pcea.commands.download import ARCHIVES, Archive, download


def make_zip(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
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
    assert re.search(r"Could not download toys from 127.0.0.1:9 \(.*refused.*\); 127.0.0.1:\d+ \(Not Found\)", message)
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


def test_a_file_put_there_by_hand_is_unpacked(server, archive, tmp_path):
    archive()
    (tmp_path / "toys.zip").write_bytes(CONTENT)
    download("toys", root=tmp_path)
    assert not server.requests
    assert is_whole(tmp_path)


def test_a_wrong_file_put_there_by_hand_is_kept(archive, tmp_path):
    archive()
    (tmp_path / "toys.zip").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"toys.zip is not the archive that was published: 4 bytes instead of"):
        download("toys", root=tmp_path)
    assert (tmp_path / "toys.zip").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/outside.txt", "toys/../../outside.txt"])
def test_paths_out_of_the_folder_are_refused(server, archive, tmp_path, name):
    archive(checksum=None, size=None)
    server.files["/toys.zip"] = make_zip({"toys/train.txt": "toy", name: "outside"})
    with pytest.raises(ValueError, match=r"unsafe path '.*outside.txt'. Nothing was unpacked"):
        download("toys", root=tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["toys.zip"]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


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
