# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The shape of the collection: what may stand where, and which files must agree with each other."""

from __future__ import annotations

import ast
import functools
import pathlib
import re
import typing as t

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
PLUGINS = ROOT / "plugins"
MODULE_UTILS = PLUGINS / "module_utils"
COLLECTION = "ansible_collections.labspan.vmnet"
THIRD_PARTY = {"iptc", "pycdlib", "pyroute2"}

MODULES = sorted(path for path in (PLUGINS / "modules").glob("*.py"))
#: What runs on a managed host.
TARGET_CODE = sorted([*MODULE_UTILS.rglob("*.py"), *MODULES])
ROLES = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())


def _name(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def _tree(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _yaml(path: pathlib.Path) -> t.Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _documentation(module: pathlib.Path) -> dict[str, t.Any]:
    for node in _tree(module).body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == "DOCUMENTATION"
        ):
            return t.cast("dict[str, t.Any]", yaml.safe_load(ast.literal_eval(node.value)))
    raise AssertionError(f"{_name(module)} has no DOCUMENTATION")


def _imports(tree: ast.AST) -> t.Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _calls(tree: ast.AST) -> t.Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def third_party_imports(tree: ast.AST) -> set[str]:
    """The libraries that a managed host may lack, of those that the code imports."""
    return {name.split(".")[0] for name in _imports(tree)} & THIRD_PARTY


def shell_calls(tree: ast.AST) -> list[int]:
    """The lines that hand a command to a shell."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (
            any(key.arg in ("shell", "use_unsafe_shell") and getattr(key.value, "value", True) for key in node.keywords)
            or (isinstance(node.func, ast.Attribute) and node.func.attr in ("system", "popen", "getoutput"))
        )
    ]


def programs_of_the_firewall(tree: ast.AST) -> set[str]:
    """The firewall's programs, of those that the code names in a string of their own.

    Asking the gate whether the host has one is everybody's right.
    """
    asked = {
        id(node.args[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "find_program" and node.args
    }
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in asked
        and re.fullmatch(r"nft|ip6?tables(-\w+)*|conntrack", node.value)
    }


# Plugins


@pytest.mark.parametrize("path", TARGET_CODE, ids=_name)
def test_only_the_gate_imports_libraries_that_a_host_may_lack(path: pathlib.Path) -> None:
    assert path.name == "_deps.py" or not third_party_imports(_tree(path))


@pytest.mark.parametrize("path", TARGET_CODE, ids=_name)
def test_only_the_netlink_file_asks_the_gate_for_pyroute2(path: pathlib.Path) -> None:
    asks = "pyroute2" in _calls(_tree(path)) or any(name.endswith("_deps.pyroute2") for name in _imports(_tree(path)))
    assert path.name in ("_deps.py", "_netlink.py") or not asks


@pytest.mark.parametrize("path", TARGET_CODE, ids=_name)
def test_only_the_firewall_package_runs_the_programs_of_the_firewall(path: pathlib.Path) -> None:
    allowed = path.name == "_deps.py" or path.parent.name == "_firewall" or path.parent == PLUGINS / "modules"
    assert allowed or not programs_of_the_firewall(_tree(path))


@pytest.mark.parametrize("path", TARGET_CODE, ids=_name)
def test_only_the_runner_ends_a_module(path: pathlib.Path) -> None:
    passes_on = path.name == "_discreet.py"
    assert path.name == "_runner.py" or passes_on or not {"exit_json", "fail_json"} & set(_calls(_tree(path)))


@pytest.mark.parametrize("path", TARGET_CODE, ids=_name)
def test_directories_are_made_where_the_umask_has_no_say(path: pathlib.Path) -> None:
    assert path.name == "_whole_files.py" or not {"mkdir", "makedirs"} & set(_calls(_tree(path)))


@pytest.mark.parametrize("path", sorted(PLUGINS.rglob("*.py")), ids=_name)
def test_no_command_goes_through_a_shell(path: pathlib.Path) -> None:
    assert not shell_calls(_tree(path))


@pytest.mark.parametrize("path", sorted(MODULE_UTILS.rglob("*.py")), ids=_name)
def test_module_utils_are_private_and_say_so(path: pathlib.Path) -> None:
    relative = path.relative_to(MODULE_UTILS)
    assert relative.parts[0].startswith("_")
    if _tree(path).body:
        assert "is **PRIVATE** to the collection" in (ast.get_docstring(_tree(path)) or "")


def _runs_on_the_controller(module: pathlib.Path) -> bool:
    """Whether an action of the same name does it all, and the module is its documentation."""
    has_code = any(not isinstance(node, (ast.Assign, ast.ImportFrom)) for node in _tree(module).body)
    return not has_code and (PLUGINS / "action" / module.name).is_file()


@pytest.mark.parametrize("path", [path for path in MODULES if not _runs_on_the_controller(path)], ids=_name)
def test_a_module_is_documentation_a_specification_and_one_call(path: pathlib.Path) -> None:
    functions = {node.name for node in _tree(path).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assert "main" in functions
    assert {"run", "run_reader"} & set(_calls(_tree(path)))
    assert not {"open", "Popen", "check_output", "check_call"} & set(_calls(_tree(path)))


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_a_module_is_in_the_action_group_and_documents_the_shared_attributes(path: pathlib.Path) -> None:
    documentation = _documentation(path)
    assert path.stem in _yaml(ROOT / "meta" / "runtime.yml")["action_groups"]["vmnet"]
    fragments = documentation.get("extends_documentation_fragment", [])
    assert "labspan.vmnet._attributes.actiongroup_vmnet" in fragments
    shared = {"labspan.vmnet._attributes", "labspan.vmnet._attributes.read_only"}
    attributes = set(documentation.get("attributes", {}))
    assert shared & set(fragments) or attributes >= {"check_mode", "diff_mode", "idempotent", "platform"}


def test_the_action_group_names_only_modules_that_are_there() -> None:
    named = _yaml(ROOT / "meta" / "runtime.yml")["action_groups"]["vmnet"]
    assert sorted(named) == [path.stem for path in MODULES]


def test_the_documented_requirements_are_those_that_the_gate_asks_for() -> None:
    gate = (MODULE_UTILS / "_deps.py").read_text(encoding="utf-8")
    documented = (PLUGINS / "doc_fragments" / "_requirements.py").read_text(encoding="utf-8")
    minimum = re.search(r'^PYROUTE2_MINIMUM = "(.+)"$', gate, re.MULTILINE)
    assert minimum
    assert f"pyroute2 >= {minimum.group(1)} " in documented
    assert f"pyroute2=={minimum.group(1)}\n" in (ROOT / "tests/requirements/oldest.txt").read_text(encoding="utf-8")
    assert "python-iptables" in documented


@pytest.mark.parametrize("path", sorted([*PLUGINS.rglob("*.py"), *(ROOT / "roles").rglob("*.py")]), ids=_name)
def test_code_on_managed_hosts_and_controllers_reads_annotations_late(path: pathlib.Path) -> None:
    assert not _tree(path).body or "__future__.annotations" in _imports(_tree(path))


# Roles


def _arguments(role: pathlib.Path) -> dict[str, dict[str, t.Any]]:
    return t.cast("dict[str, dict[str, t.Any]]", _yaml(role / "meta" / "argument_specs.yml")["argument_specs"])


@pytest.mark.parametrize("role", ROLES, ids=_name)
def test_a_role_is_documented_and_checks_its_arguments(role: pathlib.Path) -> None:
    assert (role / "README.md").is_file()
    specifications = _arguments(role)
    for path in sorted((role / "tasks").glob("*.yml")):
        if path.stem == "main":
            assert "main" in specifications
    for entry in specifications.values():
        assert entry.get("short_description")
        assert all(option.get("description") for option in entry.get("options", {}).values())


@pytest.mark.parametrize("role", [role for role in ROLES if not role.name.startswith("_")], ids=_name)
def test_defaults_and_arguments_of_a_role_are_the_same(role: pathlib.Path) -> None:
    path = role / "defaults" / "main.yml"
    defaults = (_yaml(path) if path.is_file() else {}) or {}
    options = _arguments(role)["main"].get("options", {})
    required = {name for name, option in options.items() if option.get("required")}
    assert set(defaults) <= set(options)
    without_default = {name for name, option in options.items() if "default" not in option} - required
    assert set(options) - set(defaults) <= required | without_default
    documented = {name: option["default"] for name, option in options.items() if "default" in option}
    assert documented == {name: value for name, value in defaults.items() if name in documented}


@pytest.mark.parametrize("role", ROLES, ids=_name)
def test_names_of_roles_and_their_variables_follow_one_rule(role: pathlib.Path) -> None:
    assert re.fullmatch(r"_common|[a-z][a-z0-9_]*", role.name)
    prefixes = (f"{role.name}_", f"_{role.name}_", "_common_")
    for path in [*role.glob("defaults/*.yml"), *role.glob("vars/*.yml")]:
        assert not [name for name in _yaml(path) or {} if not name.startswith(prefixes)], path


@pytest.mark.parametrize("role", ROLES, ids=_name)
def test_task_files_are_included_without_extension_so_that_arguments_are_checked(role: pathlib.Path) -> None:
    for path in sorted((role / "tasks").glob("*.yml")):
        assert not re.findall(r"tasks_from: *\S+\.ya?ml", path.read_text(encoding="utf-8")), path


# Each check above has its twin: code that it must refuse.


def test_the_checks_see_what_they_are_there_to_see() -> None:
    assert third_party_imports(ast.parse("def f():\n    from pyroute2.netlink import rtnl")) == {"pyroute2"}
    assert shell_calls(ast.parse("subprocess.run('ls', shell=True)")) == [1]
    assert shell_calls(ast.parse("os.system('ls')")) == [1]
    assert not shell_calls(ast.parse("subprocess.run(['ls'], shell=False)"))
    assert programs_of_the_firewall(ast.parse("run(['nft', '-j', 'the nft program'])")) == {"nft"}
    assert not programs_of_the_firewall(ast.parse("_deps.find_program('nft')"))
    assert "fail_json" in _calls(ast.parse("module.fail_json(msg='x')"))
    assert "makedirs" in _calls(ast.parse("os.makedirs('/run/a')"))
