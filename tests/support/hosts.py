# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Throw-away hosts for the integration tests, and modules run on them as Ansible would run them.

A host is a network, mount and process namespace of its own with empty state and runtime directories. Nothing here reads
the system through the collection's own code: what a test sees comes from C(ip), C(bridge), C(nft) and C(/proc).
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import typing as t

#: Seconds after which what has not happened will not, on a machine that has much else to do.
TIMEOUT = 180.0

# Reaps whatever is left to it, as an init does: a test that waits for a process to be gone must not meet its zombie.
_INIT = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
print("ready", flush=True)
while True:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
    signal.sigwait([signal.SIGCHLD])
"""

_SETUP = """
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/labspan
mount -t tmpfs tmpfs /var/lib/labspan
mount -t tmpfs tmpfs /etc/sysctl.d
mount -t sysfs sysfs /sys
ip link set lo up
exec "$0" -c "$1"
"""

# AnsiballZ does the same with the zipped module.
_MODULE = """
import runpy, sys
from ansible.module_utils import basic
basic._ANSIBLE_ARGS = sys.stdin.buffer.read()
basic._ANSIBLE_PROFILE = "legacy"
module = "ansible_collections.labspan.vmnet.plugins.modules." + sys.argv[1]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""

#: What a kernel counts down by itself, and what a measurement of the same state may give differently.
_VOLATILE = (
    "timer",
    "valid_life_time",
    "preferred_life_time",
    "operstate_changes",
    "updated",
    "used",
    "packets",
    "bytes",
)

#: Seconds after which the kernel has reported every change of a carrier; it collects them for one.
LINKWATCH = 1.2

_DUMP = {
    "addresses": "ip -d -j addr show",
    "links": "ip -d -j link show",
    "routes": "ip -d -j route show table all",
    "routes6": "ip -d -6 -j route show table all",
    "rules": "ip -d -j rule show",
    "rules6": "ip -d -6 -j rule show",
    "bridge": "bridge -d -j link show",
    "nft": "nft -j list ruleset",
    "sysctl": (
        "cd /proc/sys/net && grep -rs . ipv4/conf ipv6/conf ipv4/ip_forward | grep -v /stable_secret | sort; cd /"
    ),
    "files": "find /var/lib/labspan /run/labspan -type f -exec md5sum {} + | sort -k 2",
}
_LINES = ("sysctl", "files")

_WORD_OF_BRIDGE = re.compile(r"\d+: ([^:@]+)(?:@[^:]+)?: <[A-Z,_]*> mtu \d+ master \S+ state \S+ *$")
_MARKER = re.compile(r"(Deleted )?3270[0-2]:|(add|delete) table ip marker_")

#: Runs a module as root does on a hardened host: what it makes is root's alone, unless it says otherwise.
HARDENED = ("sh", "-c", 'umask 077; exec "$@"', "sh")

Result = t.Dict[str, t.Any]


class ModuleFailed(AssertionError):
    """A module that a test expected to succeed did not."""


class Traced(t.NamedTuple):
    """A module's result, and the system calls that it made, one a line."""

    result: Result
    log: str


class AnyHost:
    """What all hosts can do: run commands and modules, and show their state."""

    python_path: pathlib.Path
    interpreter: str
    pid: int
    """A process in the host's network, by the machine's number."""
    timeout = TIMEOUT
    """Seconds after which a command on the host hangs."""

    def argv(self, *command: str) -> list[str]:
        """The command line that runs a command on the host."""
        raise NotImplementedError

    def environment(self) -> t.Optional[dict[str, str]]:
        """The environment of commands on the host; None is the test's own."""
        return None

    def module_environment(self) -> dict[str, str]:
        """The environment in which Ansible's package and this collection are found."""
        return _environment(self.python_path)

    def run(self, *command: str, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command on the host."""
        done = subprocess.run(
            self.argv(*command),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=self.timeout,
            check=False,
            env=self.environment(),
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr or done.stdout}")
        return done

    def out(self, *command: str) -> str:
        """What a command on the host prints."""
        return self.run(*command).stdout

    def json(self, *command: str) -> t.Any:
        """What a command on the host prints as JSON; nothing printed is an empty list."""
        return json.loads(self.out(*command) or "[]")

    def start(self, *command: str, **options: t.Any) -> subprocess.Popen[str]:
        """Start a command on the host; it ends with the host at the latest."""
        options.setdefault("env", self.environment())
        return subprocess.Popen(self.argv(*command), text=True, **options)

    def child(self, process: subprocess.Popen[str]) -> int:
        """The machine's number of the process that C(start) brought onto the host: the one to kill."""
        await_condition(lambda: bool(_children(process.pid)), "the command's start")
        return int(_children(process.pid)[0])

    def link(self, name: str) -> t.Optional[dict[str, t.Any]]:
        """One interface as C(ip -d -j) shows it, or None."""
        found = [link for link in self.json("ip", "-d", "-j", "addr", "show") if link.get("ifname") == name]
        return t.cast("dict[str, t.Any]", found[0]) if found else None

    def directories(self, *roots: str) -> dict[str, str]:
        """The modes of all directories at and below these, and their owners."""
        lines = self.out("find", *roots, "-type", "d", "-printf", "%p %m %u\n").splitlines()
        return {path: rest for path, _space, rest in (line.partition(" ") for line in lines)}

    def addresses(self, name: str, *, link_local: bool = False) -> list[str]:
        """The addresses of an interface as CIDR, in the kernel's order."""
        link = self.link(name) or {"addr_info": []}
        return [
            f"{address['local']}/{address['prefixlen']}"
            for address in link["addr_info"]
            if link_local or address["scope"] != "link"
        ]

    def sysctl(self, path: str) -> str:
        """A kernel setting by its path under /proc/sys."""
        return self.out("cat", f"/proc/sys/{path}").strip()

    def module(
        self,
        name: str,
        params: t.Mapping[str, t.Any],
        *,
        check: bool = False,
        diff: bool = True,
        environment: t.Optional[t.Mapping[str, str]] = None,
        wrapper: t.Sequence[str] = (),
    ) -> Result:
        """Run a module of the collection; the result whatever it is."""
        process = self.start_module(name, params, check=check, diff=diff, environment=environment, wrapper=wrapper)
        return finish_module(process, self.timeout)

    def start_module(
        self,
        name: str,
        params: t.Mapping[str, t.Any],
        *,
        check: bool = False,
        diff: bool = True,
        environment: t.Optional[t.Mapping[str, str]] = None,
        wrapper: t.Sequence[str] = (),
    ) -> subprocess.Popen[str]:
        """Start a module of the collection, for tests that interrupt it or run two at once."""
        arguments = {**params, "_ansible_check_mode": check, "_ansible_diff": diff}
        process = self.start(
            *wrapper,
            self.interpreter,
            "-c",
            _MODULE,
            name,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**self.module_environment(), **(environment or {})},
        )
        if process.stdin is None:
            raise RuntimeError("no pipe to the module")
        process.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}))
        process.stdin.close()
        process.stdin = None
        return process

    def start_python(self, script: str, **options: t.Any) -> subprocess.Popen[str]:
        """Start a script that finds Ansible's package and this collection."""
        return self.start(self.interpreter, "-c", script, env=self.module_environment(), **options)

    def strace(self, name: str, params: t.Mapping[str, t.Any], calls: str) -> Traced:
        """Run a module that must succeed under strace(1), which writes down these system calls."""
        path = pathlib.Path(f"/tmp/labspan-strace-{os.getpid()}-{id(self)}")
        wrapper = ("strace", "-f", "-v", "-e", f"trace={calls}", "-o", str(path))
        try:
            result = self.converge(name, params, wrapper=wrapper)
            return Traced(result, path.read_text(encoding="utf-8", errors="replace"))
        finally:
            path.unlink(missing_ok=True)

    def converge(self, name: str, params: t.Mapping[str, t.Any], **options: t.Any) -> Result:
        """Run a module that must succeed."""
        result = self.module(name, params, **options)
        if result.get("failed"):
            raise ModuleFailed(str(result))
        return result

    def refuse(self, name: str, params: t.Mapping[str, t.Any], **options: t.Any) -> str:
        """Run a module that must fail; its message. A traceback is not a message."""
        before = self.dump()
        result = self.module(name, params, **options)
        if not result.get("failed") or "exception" in result or "msg" not in result:
            raise AssertionError(f"was not refused with a sentence: {result}")
        after = self.dump()
        changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
        assert not changed, f"a refused task changed the host: {changed}"
        return str(result["msg"])

    def dump(self) -> dict[str, t.Any]:
        """Everything that the collection's modules could change on this host, without what changes by itself."""
        self.settle()
        printed = self.out("sh", "-c", "\necho @@@\n".join(_DUMP.values())).split("@@@\n")
        found: dict[str, t.Any] = dict(zip(_DUMP, printed))
        for name in _DUMP:
            found[name] = found[name].splitlines() if name in _LINES else _stable(json.loads(found[name] or "[]"))
        found["routes6"] = [route for route in found["routes6"] if not _of_kernel(route)]
        found["nft"] = found["nft"]["nftables"][1:]
        return found

    @contextlib.contextmanager
    def monitored(self) -> t.Iterator[list[str]]:
        """Collect what C(ip monitor) and C(nft monitor) say while the block runs; the list is filled at its end.

        A marker is sent before and after and awaited, so that an empty list means silence and not deafness.
        """
        self.settle()
        heard: list[str] = []
        with _Monitor(self, ("ip", "monitor", "link", "address", "route", "rule"), _rule_marker) as links:
            with _Monitor(self, ("nft", "monitor"), _table_marker) as tables:
                yield heard
            heard += tables.heard
        heard += links.heard

    def delayed_ports(self) -> set[str]:
        """The ports of bridges whose forward delay, of 15 seconds where nobody says otherwise, is not over yet."""
        shown = self.json("ip", "-d", "-j", "link", "show")
        timers = {
            link["ifname"]: link.get("linkinfo", {}).get("info_slave_data", {}).get("forward_delay_timer")
            for link in shown
            if link
        }
        return {name for name, seconds in timers.items() if seconds}

    def assert_rests(self, name: str, params: t.Mapping[str, t.Any]) -> None:
        """A rerun of a module reports nothing and does nothing, which the kernel's monitors confirm."""
        with self.monitored() as heard:
            again = self.converge(name, params)
        found = (again["changed"], again["actions"], heard)
        if found != (False, [], []):
            raise AssertionError(f"a rerun did not rest: {found}")

    def settle(self) -> None:
        """Wait until the kernel has nothing more to say about what was done."""
        settle(self.run)


class Host(AnyHost):
    """One throw-away host; use as a context manager."""

    def __init__(self, python_path: pathlib.Path, interpreter: str = sys.executable) -> None:
        self.interpreter = interpreter
        self.python_path = python_path
        self._holder: t.Optional[subprocess.Popen[str]] = None
        self.pid = 0

    def __enter__(self) -> Host:
        pathlib.Path("/var/lib/labspan").mkdir(exist_ok=True)
        namespaces = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
        self._holder = subprocess.Popen(
            ["unshare", *namespaces, "sh", "-c", _SETUP, sys.executable, _INIT],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        if self._holder.stdout is None or self._holder.stdout.readline().strip() != "ready":
            raise RuntimeError("the namespaces of a test host could not be made (are the tests run as root?)")
        children = pathlib.Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text(
            encoding="ascii"
        )
        self.pid = int(children.split()[0])
        own = os.readlink("/proc/self/ns/net")
        if own in (os.readlink(f"/proc/{self.pid}/ns/net"), self.out("readlink", "/proc/self/ns/net").strip()):
            raise RuntimeError("the test host is in the machine's own network namespace")
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait()
            if self._holder.stdout is not None:
                self._holder.stdout.close()
            await_condition(lambda: not pathlib.Path(f"/proc/{self.pid}/ns/net").exists(), "the test host's end")

    def forget_collection(self) -> None:
        """Take away the directories of the collection, which a fresh host does not have."""
        self.run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/var/lib")
        self.run("rmdir", "/run/labspan")

    def argv(self, *command: str) -> list[str]:
        """The command line that runs a command on the host."""
        return ["nsenter", "--target", str(self.pid), "--net", "--mount", "--pid", "--", *command]


class _Monitor:
    def __init__(self, host: AnyHost, command: tuple[str, ...], mark: t.Callable[[AnyHost, str], str]) -> None:
        self._host = host
        self._mark = mark
        self._path = pathlib.Path(f"/tmp/labspan-monitor-{os.getpid()}-{id(self)}")
        self._command = command
        self._delayed: set[str] = set()
        self.heard: list[str] = []

    def __enter__(self) -> _Monitor:
        with self._path.open("w", encoding="utf-8") as output:
            self._process = self._host.start("stdbuf", "-oL", *self._command, stdout=output, stdin=subprocess.DEVNULL)
        await_condition(lambda: self._marked("begin") >= 0, f"{self._command[0]} monitor to hear its marker")
        if self._command[0] == "ip":
            delayed = self._host.delayed_ports()
            self._await_silence()
            # A timer of seconds goes off up to an eighth of it late, and is told as over before (kernel/time/timer.c).
            told = {found[1] for found in map(_WORD_OF_BRIDGE.match, self._lines()) if found}
            self._delayed = self._host.delayed_ports() | (delayed - told)
        self._begin = self._await("ready")
        return self

    def __exit__(self, *_exception: object) -> None:
        end = self._await("end")
        lines = self._lines()[self._begin : end]
        if self._delayed:
            lines = _without_the_end_of_delays(lines, self._delayed - self._host.delayed_ports())
        generations = [line for line in lines if line.startswith("# new generation")]
        others = [line for line in lines if line.strip() and line not in generations and not _MARKER.match(line)]
        # The marker's own two transactions; any more were somebody's, even if they changed nothing.
        self.heard = others + generations[2:]
        # Killing only what entered the host would leave the monitor there, an orphan that no init of the host can reap.
        os.kill(self._host.child(self._process), signal.SIGKILL)
        self._process.wait()
        self._path.unlink()

    def _await_silence(self) -> None:
        """The kernel reports carriers up to a second late (net/core/link_watch.c), those of the run before included."""
        heard, since = -1, time.monotonic()

        def silent() -> bool:
            nonlocal heard, since
            if len(self._lines()) != heard:
                heard, since = len(self._lines()), time.monotonic()
            return time.monotonic() - since > LINKWATCH

        await_condition(silent, "the end of what the kernel has to report of before")

    def _lines(self) -> list[str]:
        return self._path.read_text(encoding="utf-8", errors="replace").splitlines()

    def _find(self, token: str) -> int:
        return next((number for number, line in enumerate(self._lines(), 1) if token in line), -1)

    def _marked(self, name: str) -> int:
        return self._find(self._mark(self._host, name))

    def _await(self, name: str) -> int:
        token = self._mark(self._host, name)
        await_condition(lambda: self._find(token) >= 0, f"{self._command[0]} monitor to hear its marker")
        return self._find(token)


def _without_the_end_of_delays(heard: list[str], ports: set[str]) -> list[str]:
    """All but one word for each port: the kernel names it once more when its forward delay is over.

    It does so without STP, too, where a port forwards from the beginning (net/bridge/br_stp_timer.c). A bridge's words
    of a port are without the queue that those of an interface have.
    """
    kept, waited = [], set(ports)
    lines = iter(heard)
    for line in lines:
        found = _WORD_OF_BRIDGE.match(line)
        if found and found[1] in waited:
            waited.remove(found[1])
            next(lines, None)  # its address
        else:
            kept.append(line)
    return kept


def _rule_marker(host: AnyHost, name: str) -> str:
    number = {"begin": "32700", "ready": "32701", "end": "32702"}[name]
    host.run("ip", "rule", "add", "pref", number, "table", "250")
    host.run("ip", "rule", "del", "pref", number)
    return f"{number}:"


def _table_marker(host: AnyHost, name: str) -> str:
    host.run("nft", "add", "table", "ip", f"marker_{name}")
    host.run("nft", "delete", "table", "ip", f"marker_{name}")
    return f"marker_{name}"


def cable(host: AnyHost, name: str, other: AnyHost, far: str, *, mac: t.Optional[str] = None) -> None:
    """Lay a cable from a host's port, which is up, to another's, which is down and has this address."""
    end = f"type veth peer name {far} {f'address {mac} ' if mac else ''}netns {other.pid}"
    # Both ends are made where they belong; nothing appears in the caller's own network.
    subprocess.run(["ip", *f"link add {name} netns {host.pid} up {end}".split()], check=True)


def finish_module(process: subprocess.Popen[str], timeout: float = TIMEOUT) -> Result:
    """The result of a module that was started on a host where a command hangs after C(timeout) seconds."""
    output, errors = process.communicate(timeout=timeout * 5)
    try:
        return t.cast("Result", json.loads(output))
    except json.JSONDecodeError:
        raise AssertionError(f"the module ended with {process.returncode} and no result: {errors}{output}") from None


# Whoever asks for one interface has the kernel tell of its carrier before it answers; asked for all, it does not.
_SETTLED = """
ip -o link show | sed 's/^[0-9]*: \\([^:@]*\\)[:@].*/link show dev \\1/' | ip -force -batch - >/dev/null 2>&1
ip -j addr show
echo @@@
grep -s ^0 /proc/sys/net/ipv6/conf/*/disable_ipv6
"""


def settle(run: t.Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """Wait until the kernel of a host, on which C(run) runs commands, has nothing more to say about what was done.

    An interface learns after up to a second that it has a carrier or has lost it, gets its link-local address then, and
    is sure of it after another, carrier or not. A bridge that never had a port may not know for ever.
    """
    patience = time.monotonic() + 3

    def settled() -> bool:
        shown, _marker, ipv6 = run("sh", "-c", _SETTLED, check=False).stdout.partition("@@@\n")
        for link in json.loads(shown):
            flags, addresses = link.get("flags", ()), link.get("addr_info", ())
            if "UP" not in flags or "LOOPBACK" in flags:
                continue
            state, carrier = link.get("operstate"), "LOWER_UP" in flags
            learns = state == "UNKNOWN" or carrier != (state == "UP")
            expects = carrier and f"/{link['ifname']}/" in ipv6
            own = [address for address in addresses if str(address.get("local")).startswith("fe80")]
            awaits = (expects and not own) or any(address.get("tentative") for address in own)
            if time.monotonic() < patience and (learns or awaits):
                return False
            if carrier and any(address.get("tentative") for address in addresses):
                return False
        return True

    await_condition(settled, "the kernel to settle")


def await_condition(condition: t.Callable[[], bool], what: str, timeout: float = TIMEOUT) -> None:
    """Wait until something is so; the time limit only ends a test that would hang."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:.0f} seconds in vain for {what}")
        time.sleep(0.02)


def _environment(python_path: pathlib.Path) -> dict[str, str]:
    """Byte code is kept beside the link to the collection: compiling Ansible takes longer than a module."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "PYTHONPATH": str(python_path), "PYTHONPYCACHEPREFIX": f"{python_path}/cache"}


def _children(pid: int) -> list[str]:
    return pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()


def _of_kernel(route: t.Mapping[str, t.Any]) -> bool:
    return bool(route.get("dst") == "multicast" or str(route.get("dst")).startswith("ff00::"))


def _stable(found: t.Any) -> t.Any:
    if isinstance(found, dict):
        return {key: _stable(value) for key, value in found.items() if not key.endswith(_VOLATILE)}
    if isinstance(found, list):
        return [_stable(value) for value in found]
    return found
