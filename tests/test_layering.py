"""Imports run one way (refavs <- extract <- experiments), and the library stays free of the heavy systems."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "refavs": {"extract", "experiments", "ray", "mlflow", "timm", "torchvggish"},
    "extract": {"experiments", "mlflow"},
    "experiments": {"timm", "torchvggish"},
}


def imports_of(path: Path) -> set[tuple[str, int]]:
    """Every module a file imports, at its top or inside a function, with the line."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {(alias.name, node.lineno) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; write the whole name"
            found |= {(node.module or "", node.lineno)}
    return found


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_package_imports_only_what_lies_below_it(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in files
        for module, line in imports_of(path)
        if module.split(".")[0] in FORBIDDEN[package]
    ]
    assert files and not wrong, "\n".join(wrong)


def test_training_never_imports_an_encoder() -> None:
    """Only a prediction for a new video computes features."""
    files = sorted(path for path in (ROOT / "experiments").rglob("*.py") if path.parent.name != "predict")
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in files
        for module, line in imports_of(path)
        if module.startswith("extract.encoders")
    ]
    assert files and not wrong, "\n".join(wrong)


def modules() -> dict[str, Path]:
    """Every module of the three packages."""
    files = [path for package in FORBIDDEN for path in (ROOT / package).rglob("*.py")]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}
    return {name.removesuffix(".__init__"): path for name, path in names.items()}


def imports_between(known: dict[str, Path]) -> dict[str, set[str]]:
    """For each module the others that it imports, also inside functions and for types alone."""
    found = {}
    for name, path in known.items():
        wanted = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                wanted |= {one if one in known else str(node.module) for one in whole}
            elif isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
        found[name] = (wanted & known.keys()) - {name}
    return found


def circles(arrows: dict[str, set[str]]) -> set[frozenset[str]]:
    """Groups whose members all reach each other."""
    reached = {name: set(ahead) for name, ahead in arrows.items()}
    for middle in arrows:
        for name in arrows:
            if middle in reached[name]:
                reached[name] |= reached[middle]
    groups = {frozenset(other for other in ahead if name in reached[other]) for name, ahead in reached.items()}
    return {group for group in groups if len(group) > 1}


@pytest.mark.parametrize(("arrows", "expected"), [
    ({"a": {"b"}, "b": {"c"}, "c": set()}, set()),
    ({"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": set()}, {frozenset("abc")}),
])  # fmt: skip
def test_circles_are_found(arrows: dict[str, set[str]], expected: set[frozenset[str]]) -> None:
    assert circles(arrows) == expected


def folder_of(module: str) -> str:
    """The room of a module, which is the first folder of its package; a file beside the rooms stands for itself."""
    return ".".join(module.split(".")[:2])


@pytest.mark.long
@pytest.mark.parametrize("by", ["file", "folder"])
def test_imports_go_in_no_circle(by: str) -> None:
    room = folder_of if by == "folder" else str
    arrows: dict[str, set[str]] = {}
    for name, wanted in imports_between(modules()).items():
        ahead = {room(other) for other in wanted}
        arrows.setdefault(room(name), set()).update(ahead)
    arrows = {name: ahead - {name, *FORBIDDEN} for name, ahead in arrows.items()}
    assert not circles(arrows), [sorted(circle) for circle in circles(arrows)]


@pytest.mark.process
def test_importing_refavs_does_nothing_heavy() -> None:
    code = ("import refavs, sys; from refavs.model.heads.registry import default_options; default_options('released'); "
            "print([m for m in ('torch', 'ray', 'mlflow', 'transformers') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout


def test_top_level_holds_only_what_it_should() -> None:
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    top = {name.split("/")[0] for name in listed.splitlines()}
    assert top <= {
        "pyproject.toml", "refavs", "extract", "experiments", "tests", "infra", "README.md",
        "Makefile", "constraints.txt", "LICENSE", ".gitignore", ".ci",
    }  # fmt: skip


@pytest.mark.long
def test_files_and_functions_stay_short() -> None:
    long = []
    for package in FORBIDDEN:
        for path in sorted((ROOT / package).rglob("*.py")):
            text = path.read_text()
            if text.count("\n") > 400:
                long.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno > 65:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert not long, "\n".join(long)
