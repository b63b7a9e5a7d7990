# Copyright (c) The labspan.vmnet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A program that is run on a lab host over the lab host's own connection, for a connection to a guest behind it.

Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import json
import secrets
import shlex
import typing as t
import zipfile

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.module_utils.common.text.converters import to_bytes, to_text
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.playbook.play_context import PlayContext
from ansible.plugins.connection import ConnectionBase
from ansible.plugins.loader import become_loader, connection_loader

_PACKAGE = "ansible_collections.labspan.vmnet.plugins.module_utils"
#: What runs on the lab host; each of these files uses nothing but the others and the standard library.
CARRIED = ("_errors", "_values", "_guest._agent", "_guest._console", "_guest._line", "_guest._places", "_guest._qmp")

# Python imports from a file in memory; what follows the archive on the standard input is the request.
_BEGIN = f"""\
import os, sys
size = int(sys.stdin.buffer.readline())
archive = os.memfd_create("labspan")
os.write(archive, sys.stdin.buffer.read(size))
sys.path.insert(0, "/proc/self/fd/%d" % archive)
from {_PACKAGE}._guest._line import main
main()
"""


class Told(t.NamedTuple):
    """What the program on the lab host answers."""

    header: dict[str, t.Any]
    content: bytes


class LabHost:
    """One lab host, over a connection of its own as its variables describe it."""

    def __init__(self, name: str, variables: t.Mapping[str, t.Any], play_context: PlayContext) -> None:
        self.name = name
        self._variables: dict[str, t.Any] = {"inventory_hostname": name, **variables}
        self._no_log = play_context.no_log
        self._lockfd = play_context.connection_lockfd
        self._opened: t.Optional[ConnectionBase] = None

    def ask(self, request: t.Mapping[str, t.Any], stdin: t.Optional[bytes]) -> Told:
        """Run C(_guest/_line.py) there."""
        marker = secrets.token_hex(16)
        asked = json.dumps({**request, "marker": marker, "has_stdin": stdin is not None})
        archive = pack()
        data = b"%d\n%b%b\n%b" % (len(archive), archive, asked.encode("ascii"), stdin or b"")
        rc, stdout, stderr = self._execute(shlex.join([self._python(), "-I", "-c", _BEGIN]), data)
        header, _newline, content = stdout.partition(f"\n{marker} ".encode())[2].partition(b"\n")
        if not header:
            lines = [line for line in to_text(stderr or stdout).splitlines() if line.strip()]
            raise AnsibleConnectionFailure(
                f"lab host {self.name}: Python did not run there as it has to (exit status {rc}): "
                f"{lines[-1].strip() if lines else 'it said nothing'}"
            )
        return Told(json.loads(header), content)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _python(self) -> str:
        given = str(self._variables.get("ansible_python_interpreter") or "auto")
        return "python3" if given.startswith("auto") else given

    def _execute(self, command: str, data: bytes) -> tuple[int, bytes, bytes]:
        connection = self._connection()
        if connection.become is not None:
            command = connection.become.build_become_command(command, connection._shell)
        try:
            rc, stdout, stderr = connection.exec_command(command, in_data=data, sudoable=True)
        except AnsibleConnectionFailure as error:
            raise AnsibleConnectionFailure(f"lab host {self.name}: {error}") from error
        return rc, to_bytes(stdout), to_bytes(stderr)

    def _connection(self) -> ConnectionBase:
        if self._opened is None:
            self._opened = self._open()
        return self._opened

    def _open(self) -> ConnectionBase:
        variables = self._variables
        context = PlayContext(connection_lockfd=self._lockfd)
        context.no_log = self._no_log
        # What some plugins still ask for instead of their options.
        context.remote_addr = variables.get("ansible_host", self.name)
        context.remote_user = variables.get("ansible_user")
        context.port = variables.get("ansible_port")
        kind = str(variables.get("ansible_connection") or "ssh")
        connection = connection_loader.get("ssh" if kind == "smart" else kind, context, new_stdin=None)
        if connection is None:
            raise AnsibleError(f"lab host {self.name}: there is no connection plugin {kind} (ansible_connection).")
        connection.set_options(var_options=variables)
        connection._shell.set_options(var_options=variables)
        connection.set_become_plugin(self._become())
        return t.cast("ConnectionBase", connection)

    def _become(self) -> t.Any:
        """How one gets to be root there; None where it is not asked for."""
        if not boolean(self._variables.get("ansible_become", False)):
            return None
        method = str(self._variables.get("ansible_become_method") or "sudo")
        plugin = become_loader.get(method)
        if plugin is None:
            raise AnsibleError(f"lab host {self.name}: there is no become plugin {method} (ansible_become_method).")
        plugin.set_options(var_options=self._variables)
        return plugin


@functools.cache
def pack() -> bytes:
    """The program that runs on the lab host, as an archive that Python imports from."""
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as archive:
        packages = {f"{_PACKAGE}.{name}".rpartition(".")[0] for name in CARRIED}
        for package in sorted(
            {".".join(p.split(".")[:depth]) for p in packages for depth in range(1, p.count(".") + 2)}
        ):
            archive.writestr(f"{package.replace('.', '/')}/__init__.py", "")
        for name in CARRIED:
            full = f"{_PACKAGE}.{name}"
            archive.writestr(f"{full.replace('.', '/')}.py", _source(full))
    return output.getvalue()


def _source(name: str) -> bytes:
    specification = importlib.util.find_spec(name)
    loader: t.Any = specification.loader if specification is not None else None
    source = loader.get_source(name) if loader is not None else None
    if source is None:
        raise AnsibleError(f"the source of {name} is not there, which would run on the lab host.")
    return t.cast(bytes, to_bytes(source))  # Ansible's own loader has bytes
