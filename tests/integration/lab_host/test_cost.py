# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a rerun that finds nothing to do takes along: no time is measured here, but what is imported and started.

The module runs out of an archive, as on a managed host.
"""

from __future__ import annotations

import json
import pathlib
import typing as t
import zipfile

import ansible
import pytest
from support.hosts import Host, Result

ROOT = pathlib.Path(__file__).resolve().parents[3]
CODE = "/run/labspan/code"

pytestmark = pytest.mark.one_interpreter

#: What only a change needs.
FOR_CHANGES = [
    "_firewall._conntrack",
    "_firewall._legacy",
    "_guest._hotplug",
    "_guest._life",
    "_tun",
]
LIBRARIES = {"pyroute2", "iptc", "pycdlib", "yaml"}
#: For all networks of a host, whatever hangs on them: nft lists the chains, and each table of a network.
CHILDREN = 6

# Tells at the end what was executed of what was imported, and whatever was started.
_WITNESS = """
import atexit, importlib.util, json, os, sys
started = []
def audit(event, arguments):
    if event in ("subprocess.Popen", "os.fork", "os.posix_spawn"):
        started.append([event, [str(word) for word in (arguments[1] if len(arguments) > 1 else ())]])
sys.addaudithook(audit)
own = os.getpid()
def tell():
    if os.getpid() == own:
        lazy = importlib.util._LazyModule
        executed = sorted(name for name, module in list(sys.modules.items()) if type(module) is not lazy)
        with open(os.environ["WITNESS"], "w") as file:
            json.dump({"executed": executed, "started": started}, file)
atexit.register(tell)
"""


class Seen(t.NamedTuple):
    """A run's result, and what its process took along."""

    result: Result
    executed: set[str]
    started: list[list[t.Any]]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A directory with all that a module of the collection may import, zipped, and the witness."""
    directory = tmp_path_factory.mktemp("archive")
    core = pathlib.Path(ansible.__file__).parent
    collection = "ansible_collections/labspan/vmnet/plugins"
    with zipfile.ZipFile(directory / "payload.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for source, target in (
            (core / "module_utils", "ansible/module_utils"),
            (ROOT / "plugins/module_utils", f"{collection}/module_utils"),
            (ROOT / "plugins/modules", f"{collection}/modules"),
        ):
            for path in source.rglob("*.py"):
                file.write(path, f"{target}/{path.relative_to(source)}")
        file.write(core / "release.py", "ansible/release.py")
        parts = f"{collection}/module_utils".split("/")
        packages = {"ansible", f"{collection}/modules", *("/".join(parts[:end]) for end in range(1, len(parts) + 1))}
        for package in packages - {
            str(pathlib.PurePath(name).parent) for name in file.namelist() if "__init__" in name
        }:
            file.writestr(f"{package}/__init__.py", "")
    (directory / "sitecustomize.py").write_text(_WITNESS, encoding="utf-8")
    return directory


def _run(host: Host, archive: pathlib.Path, params: dict[str, t.Any], **options: bool) -> Seen:
    witness = archive / "witness.json"
    environment = {"PYTHONPATH": f"{archive / 'payload.zip'}:{archive}", "WITNESS": str(witness)}
    result = host.converge("lab_host", params, environment=environment, **options)
    told = json.loads(witness.read_text(encoding="utf-8"))
    return Seen(result, set(told["executed"]), told["started"])


def _params(taps: int, guests: int) -> dict[str, t.Any]:
    network = ("web", "dmz", "office")
    return {
        "account": "nobody",
        "networks": [
            {"name": "web", "scenario": "nat", "subnet": "10.61.0.0/24", "taps": _taps("web", taps)},
            {"name": "dmz", "scenario": "routed", "subnet": "10.62.0.0/24", "taps": _taps("dmz", taps)},
            {"name": "office", "scenario": "private", "taps": _taps("office", taps)},
        ],
        "guests": [
            {
                "name": f"vm{number}",
                "memory": "16",
                "machine": "pc",
                "accelerator": "tcg",
                "shutdown_timeout": 0,
                "nics": [{"network": network[number % 3]}],
            }
            for number in range(guests)
        ],
    }


def _taps(network: str, number: int) -> list[dict[str, str]]:
    return [{"name": f"{network}t{index}"} for index in range(number)]


def test_a_rerun_takes_along_what_it_needs_whatever_the_number_of_taps_and_guests(
    connected: Host, archive: pathlib.Path
) -> None:
    few, many = _params(1, 1), _params(8, 3)
    made = _run(connected, archive, few)
    package = "ansible_collections.labspan.vmnet.plugins.module_utils."
    needed = {name for name in FOR_CHANGES if package + name in made.executed}
    assert {"_tun", "_guest._life"} <= needed, "this would not see what is needed"
    assert "pyroute2" in {name.split(".")[0] for name in made.executed}

    counts = []
    for params in (few, many):
        _run(connected, archive, params)
        again = _run(connected, archive, params)
        assert again.result["actions"] == []
        assert [name for name in FOR_CHANGES if package + name in again.executed] == []
        assert LIBRARIES & {name.split(".")[0] for name in again.executed} == set()
        counts.append(len(again.started))
    assert counts[0] == counts[1] <= CHILDREN, again.started


def test_byte_code_stays_as_long_as_something_of_ours_is_there(connected: Host, archive: pathlib.Path) -> None:
    params = _params(1, 0)
    before = connected.dump()
    _run(connected, archive, params, check=True)
    assert connected.dump() == before
    _run(connected, archive, params)
    shown = connected.out("find", CODE, "-printf", "%m %U %y\n").splitlines()
    assert shown == ["700 0 d", "600 0 f"]
    _run(connected, archive, {**params, "state": "absent"})
    assert connected.run("test", "-e", CODE, check=False).returncode == 1
