# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Build the tiny guest: the kernel of the distribution's package, and an initramfs of busybox and one script.

Needs nothing but Python's standard library, apt and dpkg-deb. The kernel package is read, not installed. Prints one
line of JSON: what was built, and whether anything had to be.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import gzip
import hashlib
import json
import lzma
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import typing as t
from pathlib import Path

#: Drivers that the guest may need; what a kernel has built in is left out, what it lacks is left out too.
MODULES = (
    "virtio_pci", "virtio_net", "virtio_blk", "virtio_scsi", "virtio_rng", "virtio_balloon",
    "e1000", "e1000e", "8139cp",
    "ata_piix", "ahci", "sd_mod", "sr_mod", "nvme",
    "button", "evdev",
)  # fmt: skip
#: Without these the guest would be of no use.
REQUIRED_MODULES = frozenset(["virtio_pci", "virtio_net"])
#: Parts of the kernel package that hold these modules and what they depend on.
MODULE_DIRECTORIES = (
    "drivers/acpi/", "drivers/ata/", "drivers/block/", "drivers/cdrom/", "drivers/char/hw_random/", "drivers/input/",
    "drivers/net/", "drivers/nvme/", "drivers/pps/", "drivers/ptp/", "drivers/scsi/", "drivers/virtio/",
    "arch/", "block/", "crypto/", "lib/", "net/core/",
)  # fmt: skip

MARKER = "build.json"

INIT = r"""#!/bin/sh
# The whole operating system of the tiny guest. On the kernel command line, all optional:
#   labspan.hostname=NAME  labspan.dhcp=no  labspan.wait_for=inet6  labspan.ignore_powerdown
# and, as often as needed,
#   labspan.address=[NIC,]ADDRESS/PREFIX  labspan.gateway=[NIC,]ADDRESS  labspan.route=NETWORK,GATEWAY[,NIC]
#   labspan.dns=ADDRESS
export PATH=/bin HOME=/root TERM=vt100
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec </dev/console >/dev/console 2>&1
mkdir /dev/pts && mount -t devpts devpts /dev/pts
dmesg -n 1

. /lib/labspan/say.sh

# --- drivers --------------------------------------------------------------------------------------
. /lib/labspan/modules.sh

load() {
    load_order "$1"
    for _module in $order; do
        [ -d "/sys/module/$_module" ] || insmod "/lib/labspan/$_module.ko"
    done
}

load_for() {
    for _device in "$@"; do
        [ -r "$_device/modalias" ] || continue
        read -r _alias <"$_device/modalias"
        module_for "$_alias"
        case $driver in
            '') ;;
            virtio_pci)
                load virtio_pci
                load_for "$_device"/virtio*
                ;;
            ata_piix | ahci | virtio_scsi) controllers="$controllers $driver" ;;
            *) load "$driver" ;;
        esac
    done
}

# One device after the other, so that eth0 is the first NIC on the bus whatever its model. Controllers of disks come
# last, beside everything else: looking for disks takes AHCI half a second without KVM.
controllers=
load_for /sys/bus/pci/devices/*
load_controllers() {
    for _controller in $controllers; do
        load "$_controller"
        load sd_mod
        load sr_mod
    done
}

# --- what the command line asks for ---------------------------------------------------------------
hostname= dhcp=yes ignore_powerdown= addresses= gateways= routes= servers= wait_for=
read -r cmdline </proc/cmdline
for word in $cmdline; do
    value=${word#*=}
    case $word in
        labspan.hostname=*) hostname=$value ;;
        labspan.dhcp=*) dhcp=$value ;;
        labspan.ignore_powerdown*) ignore_powerdown=yes ;;
        labspan.address=*) addresses="$addresses $value" ;;
        labspan.gateway=*) gateways="$gateways $value" ;;
        labspan.route=*) routes="$routes $value" ;;
        labspan.dns=*) servers="$servers $value" ;;
        labspan.wait_for=*) wait_for=$value ;;
    esac
done

nics=
for path in /sys/class/net/*; do
    [ -e "$path/device" ] && nics="$nics ${path##*/}"
done

[ -n "$hostname" ] && touch /run/labspan/hostname_is_fixed
if [ -z "$hostname" ]; then
    hostname=guest
    if [ -e /sys/class/net/eth0 ]; then
        read -r mac </sys/class/net/eth0/address
        hostname=guest-$(echo "${mac#*:*:*:}" | tr -d :)
    fi
fi
set_hostname "$hostname"
for server in $servers; do
    echo "nameserver $server"
done >/run/labspan/resolv.static
cat /run/labspan/resolv.static >/etc/resolv.conf

# --- network --------------------------------------------------------------------------------------
# nic_of "[NIC,]VALUE", value_of "[NIC,]VALUE"
nic_of() { case $1 in *,*) echo "${1%%,*}" ;; *) echo eth0 ;; esac; }
value_of() { echo "${1#*,}"; }
family_of() { case $1 in *:*) echo -6 ;; *) echo -4 ;; esac; }

ip link set lo up
for nic in $nics; do
    # The first router solicitation at once: nobody else boots at this moment.
    echo 0 >/proc/sys/net/ipv6/conf/$nic/router_solicitation_delay
    ip link set "$nic" up
done
ask_for_lease() {
    request=
    [ -e /run/labspan/hostname_is_fixed ] && request="-x hostname:$hostname"
    udhcpc -f -S -i "$1" -s /lib/labspan/udhcpc.sh -t 5 -T 1 -A 2 \
        -O hostname -O search -O staticroutes -O mtu $request </dev/null >/dev/null 2>&1 &
}
static_nics=
for item in $addresses; do
    nic=$(nic_of "$item") address=$(value_of "$item")
    ip "$(family_of "$address")" addr add "$address" dev "$nic" || say "cannot set address $nic $address"
    echo "$nic $address" >"/run/labspan/expected/$(echo "$nic-$address" | tr / _)"
    [ "$(family_of "$address")" = -4 ] && static_nics="$static_nics $nic "
done
for item in $routes; do
    network=${item%%,*} rest=${item#*,}
    gateway=${rest%%,*} nic=eth0
    case $rest in *,*) nic=${rest#*,} ;; esac
    ip "$(family_of "$gateway")" route add "$network" via "$gateway" dev "$nic" || say "cannot set route $item"
done
for item in $gateways; do
    nic=$(nic_of "$item") gateway=$(value_of "$item")
    # A router advertisement may have brought a default route with metric 1024 already.
    case $gateway in *:*) metric="metric 512" ;; *) metric= ;; esac
    ip "$(family_of "$gateway")" route add default via "$gateway" dev "$nic" $metric || say "cannot set gateway $item"
done
if [ "$dhcp" = yes ]; then
    for nic in $nics; do
        case $static_nics in *" $nic "*) continue ;; esac
        echo "$nic inet" >"/run/labspan/expected/$nic-inet"
        ask_for_lease "$nic"
    done
fi
[ "$wait_for" = inet6 ] && echo "eth0 inet6" >/run/labspan/expected/eth0-inet6

httpd -p 80 -h /srv

# --- power button ---------------------------------------------------------------------------------
power_button() {
    load_for /sys/bus/acpi/devices/LNXPWRBN*
    load evdev
    for path in /sys/class/input/event*; do
        [ -r "$path/device/name" ] || continue
        read -r device <"$path/device/name"
        [ "$device" = "Power Button" ] || continue
        dd if="/dev/input/${path##*/}" bs=24 count=1 of=/dev/null 2>/dev/null || continue
        say "power button pressed, powering off"
        sync
        poweroff -f
    done
}

# --- what is plugged in later ---------------------------------------------------------------------
come() {
    case $1 in
        pci | virtio)
            controllers=
            load_for "$2"
            load_controllers
            ;;
        net)
            [ -e "$2/device" ] || return
            ip link set "${2##*/}" up
            [ "$dhcp" = yes ] && ask_for_lease "${2##*/}"
            ;;
    esac
}
late() {
    uevent sh -c 'echo "$ACTION $SUBSYSTEM $DEVPATH"' | {
        usleep 200000 # it listens by now: what came before is looked for
        for _path in /sys/bus/pci/devices/*; do
            come pci "$_path"
        done
        for _path in /sys/class/net/*; do
            case " $nics " in *" ${_path##*/} "*) ;; *) come net "$_path" ;; esac
        done
        while read -r _action _subsystem _path; do
            [ "$_action" = add ] && come "$_subsystem" "/sys$_path"
        done
    }
}
/lib/labspan/report.sh &
[ -n "$ignore_powerdown" ] || power_button &
{
    load_controllers
    late
} &

# --- console --------------------------------------------------------------------------------------
# A prompt would sit in the middle of the lines above: it comes when somebody is there to see it.
echo "labspan: $hostname console, press Enter for a shell"
while :; do
    setsid cttyhack sh -c 'read -r _line; touch /run/labspan/shell; exec sh -l'
done
"""

SET_HOSTNAME = r"""#!/bin/sh
# set_hostname NAME
echo "$1" >/proc/sys/kernel/hostname
echo "$1" >/etc/hostname
cat >/etc/hosts <<END
127.0.0.1 localhost $1
::1 localhost ip6-localhost $1
END
"""

SAY = r"""say() {
    read -r _name </proc/sys/kernel/hostname
    # A shell on the console leaves its prompt at the beginning of the line.
    _break=
    [ -e /run/labspan/shell ] && _break='\n'
    printf "$_break%s\n" "labspan: $_name $*" >/dev/console
}
"""

REPORT = r"""#!/bin/sh
# Tell each address on the console as soon as it can be used, and "ready" when all that was asked for are there.
. /lib/labspan/say.sh

report_addresses() {
    # 2: eth0    inet 10.0.0.5/24 brd 10.0.0.255 scope global eth0 ...
    ip -o addr show scope global >/run/labspan/addresses
    while read -r _index nic family address rest; do
        case " $rest " in *" tentative "* | *" dadfailed "*) continue ;; esac
        case " $known " in *" $nic,$address "*) continue ;; esac
        known="$known $nic,$address"
        say "address $nic $address"
        # What DHCP is expected to bring is there when its routes are, too: udhcpc.sh tells.
        [ "$family" = inet6 ] && rm -f "/run/labspan/expected/$nic-inet6"
        rm -f "/run/labspan/expected/$(echo "$nic-$address" | tr / _)"
    done </run/labspan/addresses
}

uptime() {
    read -r _uptime _rest </proc/uptime
    echo "${_uptime%%.*}"
}

known= announced= begin=$(uptime) pause=100000
while :; do
    report_addresses
    if [ -z "$announced" ]; then
        missing=$(cat /run/labspan/expected/* 2>/dev/null)
        if [ -n "$missing" ] && [ $(($(uptime) - begin)) -ge 30 ]; then
            cat /run/labspan/expected/* | while read -r wish; do
                say "still without $wish after 30 seconds"
            done
            missing=
        fi
        if [ -z "$missing" ]; then
            say ready
            touch /run/labspan/ready
            announced=yes
            begin=$(uptime)
        fi
    elif [ $(($(uptime) - begin)) -ge 15 ]; then
        pause=3000000
    fi
    usleep $pause
done
"""

UDHCPC = r"""#!/bin/sh
# Called by udhcpc with the event, and the lease in the environment.
state=/run/labspan/lease.$interface

forget() {
    [ -r "$state" ] && read -r old <"$state" && ip -4 addr del "$old" dev "$interface" 2>/dev/null
    rm -f "$state"
}

case $1 in
    deconfig) forget ;;
    bound | renew)
        # First, since what is said about the address begins with the name.
        [ -n "$hostname" ] && [ ! -e /run/labspan/hostname_is_fixed ] && set_hostname "$hostname"
        [ -r "$state" ] && read -r old <"$state" || old=
        new=$ip/${mask:-24}
        if [ "$old" != "$new" ]; then
            forget
            ip -4 addr add "$new" broadcast + dev "$interface"
            echo "$new" >"$state"
        fi
        [ -n "$mtu" ] && ip link set "$interface" mtu "$mtu"
        if [ -n "$staticroutes" ]; then
            # RFC 3442: where the server sends these, the router option does not count.
            set -- $staticroutes
            while [ $# -ge 2 ]; do
                via="via $2"
                [ "$2" = 0.0.0.0 ] && via=
                ip -4 route replace "$1" $via dev "$interface"
                shift 2
            done
        elif [ -n "$router" ]; then
            ip -4 route replace default via "${router%% *}" dev "$interface"
        fi
        {
            [ -n "${search:-$domain}" ] && echo "search ${search:-$domain}"
            for server in $dns; do echo "nameserver $server"; done
        } >"/run/labspan/resolv.$interface"
        cat /run/labspan/resolv.* >/etc/resolv.conf
        rm -f "/run/labspan/expected/$interface-inet"
        ;;
esac
exit 0
"""

INDEX = r"""#!/bin/sh
client=${REMOTE_ADDR#[}
client=${client%]}
read -r name </proc/sys/kernel/hostname
printf 'Content-Type: text/plain\r\n\r\n%s sees %s\n' "$name" "${client#::ffff:}"
"""

PROFILE = r"""export PS1='\h:\w\$ ' HISTFILE=
"""

DIRECTORIES = (
    "bin", "dev", "etc", "lib", "lib/labspan", "proc", "root", "run", "run/labspan", "run/labspan/expected",
    "srv", "srv/cgi-bin", "sys", "tmp",
)  # fmt: skip
PASSWD = "root::0:0:root:/root:/bin/sh\n"
GROUP = "root:x:0:\n"


class BuildError(Exception):
    """A sentence for the administrator."""


# --- modules --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Module:
    """A kernel module as the initramfs needs it."""

    name: str
    image: bytes
    depends: tuple[str, ...]
    aliases: tuple[str, ...]


def underscored(name: str) -> str:
    """Module names treat '-' and '_' alike."""
    return name.replace("-", "_")


def read_module(name: str, image: bytes) -> Module:
    """Take the dependencies and aliases out of the module's own .modinfo section."""
    fields: dict[str, list[str]] = {}
    for entry in elf_section(image, b".modinfo").split(b"\0"):
        key, _equals, value = entry.decode("ascii", "replace").partition("=")
        fields.setdefault(key, []).append(value)
    depends = tuple(name for value in fields.get("depends", []) for name in value.split(",") if name)
    return Module(name, image, depends, tuple(fields.get("alias", [])))


def elf_section(image: bytes, name: bytes) -> bytes:
    """The content of a section of a 64-bit little-endian ELF file; empty when it has none of that name."""
    if image[:6] != b"\x7fELF\x02\x01":
        raise BuildError("a kernel module is not a 64-bit little-endian ELF file; this architecture is not supported.")
    table = struct.unpack_from("<Q", image, 0x28)[0]
    entry_size, count, names_index = struct.unpack_from("<HHH", image, 0x3A)

    def header(index: int) -> tuple[int, int, int]:
        start = table + index * entry_size
        name_offset = struct.unpack_from("<I", image, start)[0]
        offset, size = struct.unpack_from("<QQ", image, start + 0x18)
        return name_offset, offset, size

    names = header(names_index)[1]
    for index in range(count):
        name_offset, offset, size = header(index)
        if image.startswith(name + b"\0", names + name_offset):
            return image[offset : offset + size]
    return b""


def load_order(wanted: str, modules: t.Mapping[str, Module]) -> list[str]:
    """The modules to load, in order, so that C(wanted) is loaded last."""
    order: list[str] = []

    def visit(name: str) -> None:
        module = modules.get(underscored(name))
        if module is None:
            raise BuildError(f"the kernel module {wanted} needs {name}, which the kernel package does not have.")
        for dependency in module.depends:
            visit(dependency)
        if module.name not in order:
            order.append(module.name)

    visit(wanted)
    return order


def modules_script(orders: t.Mapping[str, list[str]], modules: t.Mapping[str, Module]) -> str:
    """Shell functions that answer what depmod's files would: the driver of a device, and what to load for it."""
    lines = ["load_order() {", "    order=", "    case $1 in"]
    lines += [f"        {name}) order='{' '.join(order)}' ;;" for name, order in orders.items()]
    lines += ["    esac", "}", "module_for() {", "    driver=", "    case $1 in"]
    for name in orders:
        patterns = [alias for alias in modules[name].aliases if re.match(r"(pci|virtio|acpi\*?):", alias)]
        if patterns:
            lines.append(f"        {'|'.join(shell_pattern(alias) for alias in patterns)}) driver={name} ;;")
    lines += ["    esac", "}", ""]
    return "\n".join(lines)


def shell_pattern(alias: str) -> str:
    """A module alias is a glob already; only what the shell's grammar would trip over needs care."""
    return re.sub(r"[^A-Za-z0-9_*?:\[\]-]", lambda match: "\\" + match[0], alias)


# --- sources --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What a kernel package holds for us."""

    release: str
    image: bytes
    modules: t.Mapping[str, Module]
    builtin: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Busybox:
    """The guest's only program."""

    image: bytes
    applets: tuple[str, ...]


def kernel_from_package(package: str, scratch: Path) -> Kernel:
    """Download the package and read it as a stream: unpacked whole it would take 400 MB."""
    archive = download(real_kernel_package(package), scratch)
    kernel = kernel_from_files(package_files(archive, wanted_path))
    archive.unlink()
    return kernel


def package_files(archive: Path, wanted: t.Callable[[str], bool] = lambda _: True) -> t.Iterator[tuple[str, bytes]]:
    """The wanted files of a Debian package, in the order of the package."""
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process, tarfile.open(None, "r|", process.stdout) as tar:
        for member in tar:
            if member.isfile() and wanted(member.name):
                yield member.name, t.cast("t.IO[bytes]", tar.extractfile(member)).read()
    if process.returncode != 0:
        raise BuildError(f"dpkg-deb could not read {archive.name} (exit status {process.returncode}).")


def wanted_path(path: str) -> bool:
    """Whether a file of the kernel's tree (boot/vmlinuz-*, lib/modules/*/...) can be of use."""
    if "/boot/vmlinuz-" in path or path.endswith("/modules.builtin"):
        return True
    match = re.search(r"/lib/modules/[^/]+/kernel/(.*\.ko(\.(xz|gz))?)$", path)
    return match is not None and match[1].startswith(MODULE_DIRECTORIES)


def kernel_from_tree(tree: Path) -> Kernel:
    """Use the kernel that is installed under this directory (C(/) for the host's own)."""
    images = sorted((tree / "boot").glob("vmlinuz-*"), key=lambda path: path.stat().st_mtime)
    if not images:
        raise BuildError(f"{tree / 'boot'} holds no vmlinuz-*; leave the kernel tree out to use the package.")
    modules = tree / "lib/modules" / images[-1].name[len("vmlinuz-") :]
    paths = [images[-1], *(path for path in modules.rglob("*") if path.is_file() and wanted_path(str(path)))]
    return kernel_from_files((str(path), path.read_bytes()) for path in paths)


def kernel_from_files(files: t.Iterable[tuple[str, bytes]]) -> Kernel:
    """Sort the files of a kernel package."""
    release, image, modules, builtin = "", b"", {}, frozenset[str]()
    for path, content in files:
        name = path.rsplit("/", 1)[-1]
        if name.startswith("vmlinuz-"):
            release, image = name[len("vmlinuz-") :], content
        elif name == "modules.builtin":
            builtin = frozenset(underscored(Path(line).name[: -len(".ko")]) for line in content.decode().split())
        else:
            stem, _dot, compression = name.partition(".ko")
            if compression:
                content = {".xz": lzma.decompress, ".gz": gzip.decompress}[compression](content)
            name = underscored(stem)
            modules[name] = read_module(name, content)
    if not image:
        raise BuildError("the kernel package holds no /boot/vmlinuz-*.")
    return Kernel(release, image, modules, builtin)


def real_kernel_package(package: str) -> str:
    """The package that a metapackage such as linux-image-amd64 stands for today."""
    for attempt in range(2):
        found = apt("apt-cache", "depends", "--important", package, check=False)
        depends = re.findall(r"^\s*\|?Depends: (linux-image-\S+)$", found, re.MULTILINE)
        if depends:
            return str(depends[0])
        if found.strip():
            return package
        if attempt == 0:
            apt("apt-get", "--quiet", "update")
    raise BuildError(f"apt knows no package {package}; name the kernel package of this distribution.")


def download(package: str, directory: Path) -> Path:
    """Fetch a package without installing it."""
    try:
        apt("apt-get", "--quiet", "download", package, cwd=directory)
    except BuildError:
        # The lists may be older than the mirror.
        apt("apt-get", "--quiet", "update")
        apt("apt-get", "--quiet", "download", package, cwd=directory)
    found = list(directory.glob("*.deb"))
    if len(found) != 1:
        raise BuildError(f"apt-get download {package} left {len(found)} files instead of one.")
    return found[0]


def apt(*command: str, check: bool = True, cwd: t.Optional[Path] = None) -> str:
    """Run a command of apt and return what it printed."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    except FileNotFoundError:
        raise BuildError(
            f"{command[0]} is not on this host: the tiny guest is built from packages of Debian or its derivatives. "
            "Elsewhere give the directory of an installed kernel, and install a static busybox."
        ) from None
    if check and done.returncode != 0:
        raise BuildError(f"{' '.join(command)} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def static_busybox(scratch: Path) -> Busybox:
    """The host's own busybox if it is a static one, or else that of the package busybox-static."""
    for candidate in filter(None, (shutil.which("busybox"), "/bin/busybox")):
        with contextlib.suppress(OSError):
            image = Path(candidate).read_bytes()
            if is_static(image):
                return Busybox(image, applets(candidate))
    archive = download("busybox-static", scratch)
    images = [content for name, content in package_files(archive) if name.endswith("bin/busybox")]
    if not images:
        raise BuildError(f"{archive.name} holds no busybox.")
    program = scratch / "busybox"
    program.write_bytes(images[0])
    program.chmod(0o755)
    return Busybox(images[0], applets(str(program)))


def applets(program: str) -> tuple[str, ...]:
    """The names that this busybox answers to."""
    listed = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
    return tuple(name for name in listed if name != "busybox")


def is_static(image: bytes) -> bool:
    """Whether the ELF program needs no interpreter (no PT_INTERP)."""
    if image[:6] != b"\x7fELF\x02\x01":
        return False
    table = struct.unpack_from("<Q", image, 0x20)[0]
    entry_size, count = struct.unpack_from("<HH", image, 0x36)
    return all(struct.unpack_from("<I", image, table + index * entry_size)[0] != 3 for index in range(count))


# --- images ---------------------------------------------------------------------------------------


def bootable_kernel(image: bytes) -> tuple[str, bytes]:
    """The name and content of the kernel to boot.

    An x86 bzImage spends most of its boot on unpacking itself when QEMU has no KVM (XZ: 2.7 of 4.7 s); the ELF kernel
    inside boots directly (PVH). The layout is in the kernel's Documentation/arch/x86/boot.rst.
    """
    if image[0x202:0x206] != b"HdrS":
        return "vmlinuz", image
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length]
    if payload.startswith(b"\xfd7zXZ"):
        kernel = lzma.LZMADecompressor().decompress(payload)
    elif payload.startswith(b"\x1f\x8b"):
        # Four bytes with the size follow the stream.
        kernel = gzip.decompress(payload[:-4])
    else:
        return "vmlinuz", image
    return ("vmlinux", kernel) if kernel.startswith(b"\x7fELF") else ("vmlinuz", image)


class Cpio:
    """An archive in the "newc" format, which is all the kernel reads."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def add(self, path: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        """Append one entry; C(mode) includes its type."""
        self._inode += 1
        name = path.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._parts += [self._padded(header + name), self._padded(content)]

    def directory(self, path: str) -> None:
        self.add(path, stat.S_IFDIR | 0o755)

    def file(self, path: str, content: t.Union[str, bytes], mode: int = 0o644) -> None:
        self.add(path, stat.S_IFREG | mode, content.encode() if isinstance(content, str) else content)

    def link(self, path: str, target: str) -> None:
        self.add(path, stat.S_IFLNK | 0o777, target.encode())

    def bytes(self) -> bytes:
        """The whole archive, closed."""
        self.add("TRAILER!!!", 0)
        return b"".join(self._parts)

    @staticmethod
    def _padded(content: t.Any) -> t.Any:
        return content + b"\0" * (-len(content) % 4)


def initramfs(kernel: Kernel, busybox: Busybox) -> bytes:
    """The guest's whole file system."""
    lacking = sorted(REQUIRED_MODULES - kernel.modules.keys() - kernel.builtin)
    if lacking:
        raise BuildError(f"the kernel {kernel.release} has no {', '.join(lacking)}; use a generic kernel package.")
    orders = {name: load_order(name, kernel.modules) for name in MODULES if name in kernel.modules}
    archive = Cpio()
    for path in DIRECTORIES:
        archive.directory(path)
    archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    archive.file("init", INIT, 0o755)
    archive.file("bin/busybox", busybox.image, 0o755)
    for applet in busybox.applets:
        archive.link(f"bin/{applet}", "busybox")
    archive.file("bin/set_hostname", SET_HOSTNAME, 0o755)
    archive.file("etc/passwd", PASSWD)
    archive.file("etc/group", GROUP)
    archive.file("etc/profile", PROFILE)
    archive.file("srv/cgi-bin/index.cgi", INDEX, 0o755)
    archive.file("lib/labspan/modules.sh", modules_script(orders, kernel.modules))
    archive.file("lib/labspan/report.sh", REPORT, 0o755)
    archive.file("lib/labspan/say.sh", SAY)
    archive.file("lib/labspan/udhcpc.sh", UDHCPC, 0o755)
    for name in dict.fromkeys(name for order in orders.values() for name in order):
        archive.file(f"lib/labspan/{name}.ko", kernel.modules[name].image)
    return archive.bytes()


# --- the directory --------------------------------------------------------------------------------


def fingerprint(package: str, tree: t.Optional[str]) -> str:
    """What the result depends on, apart from the version that the distribution ships today."""
    source = Path(__file__).read_bytes()
    return hashlib.sha256(b"\0".join([source, package.encode(), (tree or "").encode()])).hexdigest()


def existing(directory: Path, wanted: str) -> t.Optional[dict[str, t.Any]]:
    """What stands in the directory when it is complete and current, else None."""
    try:
        built: dict[str, t.Any] = json.loads((directory / MARKER).read_text())
        current = built["fingerprint"] == wanted and all(
            (directory / name).stat().st_size == size for name, size in built["files"].items()
        )
    except (OSError, ValueError, KeyError):
        return None
    return built if current else None


def write(directory: Path, name: str, content: bytes) -> None:
    """Replace a file in one step: guests that boot meanwhile see the old one or the new one."""
    with tempfile.NamedTemporaryFile(dir=directory, prefix=f".{name}.", delete=False) as file:
        try:
            file.write(content)
            os.fchmod(file.fileno(), 0o644)
            os.replace(file.name, directory / name)
        except BaseException:
            os.unlink(file.name)
            raise


def build(directory: Path, wanted: str, package: str, tree: t.Optional[str]) -> dict[str, t.Any]:
    """Make both images and the marker, the marker last."""
    with tempfile.TemporaryDirectory(prefix="labspan-tiny-guest-") as scratch:
        kernel = kernel_from_tree(Path(tree)) if tree else kernel_from_package(package, Path(scratch))
        busybox = static_busybox(Path(scratch))
    name, image = bootable_kernel(kernel.image)
    files = {name: image, "initrd.img": initramfs(kernel, busybox)}
    for path, content in files.items():
        write(directory, path, content)
    built = {
        "fingerprint": wanted,
        "release": kernel.release,
        "kernel": name,
        "initrd": "initrd.img",
        "files": {path: len(content) for path, content in files.items()},
    }
    write(directory, MARKER, json.dumps(built, indent=1).encode() + b"\n")
    return built


@contextlib.contextmanager
def locked(directory: Path) -> t.Iterator[None]:
    """One builder at a time; the lock is on the directory itself and leaves nothing behind."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def answer(directory: Path, built: t.Mapping[str, t.Any], *, changed: bool) -> dict[str, t.Any]:
    return {
        "changed": changed,
        "kernel": str(directory / built["kernel"]),
        "initrd": str(directory / built["initrd"]),
        "release": built["release"],
    }


def run(options: argparse.Namespace) -> dict[str, t.Any]:
    directory = Path(options.output)
    wanted = fingerprint(options.package, options.kernel_tree)
    found = None if options.force else existing(directory, wanted)
    if found:
        return answer(directory, found, changed=False)
    if options.check:
        predicted = {"kernel": "vmlinux", "initrd": "initrd.img", "release": ""}
        return answer(directory, predicted, changed=True)
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    with locked(directory):
        found = None if options.force else existing(directory, wanted)
        if found:
            return answer(directory, found, changed=False)
        return answer(directory, build(directory, wanted, options.package, options.kernel_tree), changed=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output", default="/var/lib/labspan/tiny_guest", help="directory for the images")
    parser.add_argument("--package", default="linux-image-amd64", help="kernel package, or the metapackage of one")
    parser.add_argument("--kernel-tree", help="use the kernel installed under this directory instead of the package")
    parser.add_argument("--force", action="store_true", help="build even if the images are current")
    parser.add_argument("--check", action="store_true", help="write nothing, say whether anything would be built")
    try:
        print(json.dumps(run(parser.parse_args())))
    except (BuildError, OSError) as error:
        print(f"cannot build the tiny guest: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
