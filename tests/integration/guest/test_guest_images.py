# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images that are downloaded: from a web server in the test's own namespace, seen through find, stat and qemu-img."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import typing as t

import pytest
from support.hosts import await_condition, finish_module

from .conftest import Guests, image_info, make_image

pytestmark = pytest.mark.one_interpreter

IMAGES = "/var/lib/labspan/images"
PORT = 8099

#: Serves the directory, and stops in the middle of what is called broken; hangs in the middle of what is called slow.
#: By https it only says that all is to be had by http.
_SERVER = """
import functools, http.server, ssl, sys, threading, time

class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        print(self.path, flush=True)
        if self.path not in ("/broken.qcow2", "/slow.qcow2"):
            return super().do_GET()
        content = open(self.directory + "/base.qcow2", "rb").read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:100000])
        if self.path == "/slow.qcow2":
            time.sleep(1000)

    def log_message(self, *arguments):
        pass

class Redirector(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(302)
        self.send_header("Location", "http://127.0.0.1:" + sys.argv[2] + self.path)
        self.end_headers()

    def log_message(self, *arguments):
        pass

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[3])
redirector = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2]) + 1), Redirector)
redirector.socket = context.wrap_socket(redirector.socket, server_side=True)
threading.Thread(target=redirector.serve_forever, daemon=True).start()
handler = functools.partial(Handler, directory=sys.argv[1])
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), handler)
print("ready", flush=True)
server.serve_forever()
"""


class Shop(t.NamedTuple):
    """Where images are to be had."""

    directory: pathlib.Path
    url: str
    process: subprocess.Popen[str]
    log: pathlib.Path
    digest: str
    redirector: str
    certificate: pathlib.Path

    def asked(self) -> list[str]:
        return self.log.read_text(encoding="ascii").split()[1:]


@pytest.fixture
def shop(guests: Guests, tmp_path: pathlib.Path) -> t.Iterator[Shop]:
    directory, log = tmp_path / "shop", tmp_path / "log"
    directory.mkdir()
    base = make_image(directory / "base.qcow2", "-o", "preallocation=full", "1M")
    digest = hashlib.sha256(base.read_bytes()).hexdigest()
    (directory / "SHA256SUMS").write_text(f"{digest}  base.qcow2\n", encoding="ascii")
    certificate = tmp_path / "certificate.pem"
    request = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    output_options = ("-keyout", certificate, "-out", tmp_path / "public.pem")
    subprocess.run([*request.split(), *output_options], check=True, capture_output=True)
    with certificate.open("a") as file:
        file.write((tmp_path / "public.pem").read_text(encoding="ascii"))
    with log.open("w") as output:
        words = (sys.executable, "-c", _SERVER, str(directory), str(PORT), str(certificate))
        process = guests.host.start(*words, stdout=output)
    await_condition(lambda: "ready" in log.read_text(encoding="ascii"), "the web server")
    redirector = f"https://127.0.0.1:{PORT + 1}"
    yield Shop(directory, f"http://127.0.0.1:{PORT}", process, log, digest, redirector, tmp_path / "public.pem")
    process.kill()
    process.wait()


def kept(guests: Guests) -> list[str]:
    """All there is in the directory of downloaded images, hidden or not."""
    return guests.host.run("find", IMAGES, "-mindepth", "1", check=False).stdout.split()


def test_an_image_is_downloaded_once_for_all_guests(guests: Guests, shop: Shop) -> None:
    disks = [{"base_image": f"{shop.url}/base.qcow2", "checksum": f"sha256:{shop.digest}", "size": "8M"}]
    entries = [{"name": name, "disks": disks} for name in ("ci-1", "ci-2")]
    foretold = guests.check(None, guests=entries, state="stopped")
    assert [action for action in foretold["actions"] if "Fetch" in action] == [foretold["actions"][0]]
    assert f"Fetch the image {shop.url}/base.qcow2 into {IMAGES}/base-" in foretold["actions"][0]
    assert (kept(guests), shop.asked()) == ([], [])

    result = guests.converge(None, guests=entries, state="stopped")
    assert result["actions"] == foretold["actions"]
    (path,) = kept(guests)
    assert guests.mode(path) == "444 root"
    assert guests.host.out("sha256sum", path).split()[0] == shop.digest
    for name in ("ci-1", "ci-2"):
        overlay = image_info(guests.host, f"/var/lib/labspan/guests/{name}/disk0.qcow2")
        assert (overlay["backing-filename"], overlay["backing-filename-format"]) == (path, "qcow2")
    assert shop.asked() == ["/base.qcow2"]

    shop.process.kill()  # nobody is asked again, not even by a new guest
    assert not guests.converge(None, guests=entries, state="stopped")["changed"]
    guests.converge("ci-3", disks=disks)
    assert guests.activity("ci-3") == "running"
    assert guests.host.out("sha256sum", path).split()[0] == shop.digest


def test_a_checksum_is_looked_up_and_what_is_wrong_leaves_nothing(guests: Guests, shop: Shop) -> None:
    other = "0" * 64
    overlay = shop.directory / "overlay.qcow2"
    make_image(overlay, "-F", "qcow2", "-b", "base.qcow2", "1M")
    (shop.directory / "error.qcow2").write_text("<html>not here any more</html>", encoding="ascii")
    of_overlay = hashlib.sha256(overlay.read_bytes()).hexdigest()
    wrong: list[tuple[dict[str, t.Any], str]] = [
        (
            {"base_image": f"{shop.url}/base.qcow2", "checksum": f"sha256:{other}"},
            f"checksum {shop.digest}, not {other}",
        ),
        ({"base_image": f"{shop.url}/overlay.qcow2", "checksum": f"sha256:{of_overlay}"}, "must stand alone"),
        ({"base_image": f"{shop.url}/gone.qcow2", "checksum": f"sha256:{other}"}, "cannot be downloaded"),
        ({"base_image": f"{shop.url}/broken.qcow2", "checksum": f"sha256:{shop.digest}"}, "cannot be downloaded"),
        ({"base_image": f"file://{shop.directory}/error.qcow2", "base_format": "qcow2"}, "is a raw image, not qcow2"),
    ]
    for options, sentence in wrong:
        # The directories themselves may be left.
        message = guests.host.refuse("qemu_guest", guests.params("ci-w", disks=[options]))
        assert sentence in message, message
        assert kept(guests) == []
    sums = f"sha256:file://{shop.directory}/SHA256SUMS"
    guests.converge("ci-w", disks=[{"base_image": f"{shop.url}/base.qcow2", "checksum": sums}], state="stopped")
    assert len(kept(guests)) == 1


def test_what_https_leads_away_from_is_not_fetched_unless_the_task_has_the_checksum(guests: Guests, shop: Shop) -> None:
    environment = {"SSL_CERT_FILE": str(shop.certificate)}
    base = f"{shop.redirector}/base.qcow2"
    refused: list[dict[str, str]] = [
        {"base_image": base},
        {"base_image": base, "checksum": f"sha256:{shop.url}/SHA256SUMS"},
        {"base_image": base, "checksum": f"sha256:{shop.redirector}/SHA256SUMS"},
        {"base_image": f"{shop.url}/base.qcow2", "checksum": f"sha256:{shop.redirector}/SHA256SUMS"},
    ]
    for options in refused:
        params = guests.params("ci-r", disks=[options])
        message = guests.host.refuse("qemu_guest", params, environment=environment)
        assert "is redirected to http://127.0.0.1, and what comes from there can be changed by anybody" in message
        assert kept(guests) == []
    assert "/base.qcow2" not in shop.asked()
    params = guests.params("ci-r", disks=[{"base_image": base, "checksum": f"sha256:{shop.digest}"}], state="stopped")
    guests.host.converge("qemu_guest", params, environment=environment)
    assert shop.asked()[-1] == "/base.qcow2"
    assert len(kept(guests)) == 1


def test_a_disk_must_not_be_smaller_than_the_image_that_came(guests: Guests, shop: Shop) -> None:
    base = {"base_image": f"file://{shop.directory}/base.qcow2"}
    message = guests.host.module("qemu_guest", guests.params("ci-s", disks=[{**base, "size": "512K"}]))["msg"]
    assert "is smaller than its base image" in message
    assert not guests.exists("/var/lib/labspan/guests/ci-s/disk0.qcow2")
    assert not guests.exists("/var/lib/labspan/guests/ci-s/guest.json")
    guests.converge("ci-s", disks=[base], state="stopped")


def test_a_run_that_is_killed_leaves_nothing(guests: Guests, shop: Shop) -> None:
    disks = [{"base_image": f"{shop.url}/slow.qcow2", "checksum": f"sha256:{shop.digest}"}]
    process = guests.host.start_module("qemu_guest", guests.params("ci-k", disks=disks))
    await_condition(lambda: "/slow.qcow2" in shop.asked(), "the download to begin")
    pid = guests.host.child(process)
    descriptors = pathlib.Path(f"/proc/{pid}/fd")

    def begun() -> bool:
        for entry in descriptors.iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                if str(entry.readlink()).startswith(IMAGES) and entry.stat().st_size > 0:
                    return True
        return False

    await_condition(begun, "a part of the image to be there")
    os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert kept(guests) == []


def test_two_runs_do_not_get_into_each_others_way(guests: Guests, shop: Shop) -> None:
    def entry(name: str) -> dict[str, t.Any]:
        disks = [{"base_image": f"file://{shop.directory}/base.qcow2", "checksum": f"sha256:{shop.digest}"}]
        return guests.params(name, disks=disks, state="stopped")

    with contextlib.ExitStack() as stack:
        runs = []
        for name in ("ci-a", "ci-b", "ci-c"):
            # A network namespace of its own each, so that the host's lock does not let them wait for each other.
            run = guests.host.start_module("qemu_guest", entry(name), wrapper=("unshare", "--net"))
            stack.callback(run.kill)
            runs.append(run)
        results = [finish_module(run) for run in runs]
    assert [result.get("msg") for result in results] == [None] * 3
    (path,) = kept(guests)
    assert guests.host.out("sha256sum", path).split()[0] == shop.digest
    for name in ("ci-a", "ci-b", "ci-c"):
        assert image_info(guests.host, f"/var/lib/labspan/guests/{name}/disk0.qcow2")["backing-filename"] == path


def test_no_space_for_an_image_leaves_nothing(guests: Guests, shop: Shop) -> None:
    guests.host.run("mkdir", "-p", IMAGES)
    guests.host.run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", IMAGES)
    disks = [{"base_image": f"file://{shop.directory}/base.qcow2"}]
    message = guests.host.refuse("qemu_guest", guests.params("ci-n", disks=disks, state="stopped"))
    assert "No space left on device" in message
    assert kept(guests) == []
    assert json.loads(guests.host.out("stat", "-f", '--printf={"free":%f,"all":%b}', IMAGES))["free"] > 0
    guests.host.run("mount", "-o", "remount,size=8m", IMAGES)
    guests.converge("ci-n", disks=disks, state="stopped")
