"""The rules of style that no linter knows."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
FILE_BYTES_MAX = 1_000_000
BANNED_NAMES = {"base", "common", "core", "helper", "helpers", "manager", "misc", "util", "utils"}
# Put together, so that this file does not find itself.
UNFINISHED = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X")) + r")\b")
MACHINE_PATH = re.compile("(?<![\\w.])/(" + "|".join(("wo" + "rk", "ro" + "ot")) + ")/")


def project_files():
    """Every file that is or would be tracked; all files where there is no repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        paths = [p for top in ("peerformer", "tests", "docs") for p in (ROOT / top).rglob("*")]
    return sorted(p for p in paths if p.is_file() and "__pycache__" not in p.parts)


FILES = project_files()
SOURCES = [p for p in FILES if p.suffix == ".py"]
PACKAGE = [p for p in SOURCES if p.is_relative_to(ROOT / "peerformer")]


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def text_of(path):
    """The text of a file; empty for one that is no text."""
    data = path.read_bytes()
    return "" if b"\0" in data else data.decode(errors="replace")


def lines_matching(pattern):
    return [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in FILES
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if pattern.search(line)
    ]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_and_functions_fit_a_reader(path):
    text = path.read_text()
    assert len(text.splitlines()) <= FILE_LINES_MAX
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= FUNCTION_LINES_MAX, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_nothing_is_caught_blindly_and_only_the_interface_prints(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), node.lineno
        prints = (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
        )
        assert not prints or "interface" in path.parts, f"print in line {node.lineno}"


def test_no_module_has_a_name_that_says_nothing():
    bad = [name_of(p) for p in SOURCES if {p.stem, p.parent.name} & BANNED_NAMES]
    assert not bad


def test_nothing_is_left_for_later():
    assert not lines_matching(UNFINISHED)


def test_no_path_of_one_machine_is_written_down():
    assert not lines_matching(MACHINE_PATH)


def test_no_large_file_is_tracked():
    large = {name_of(p): p.stat().st_size for p in FILES if p.stat().st_size > FILE_BYTES_MAX}
    assert not large


def described_modules():
    """Paths that docs/architecture.md lists: a heading per folder, a bullet per file."""
    folder, paths = None, set()
    for line in (ROOT / "docs" / "architecture.md").read_text().splitlines():
        if heading := re.match(r"#+ `(peerformer/(?:\w+/)*)`", line):
            folder = heading[1]
            paths.add(folder)
        elif line.startswith("#"):
            folder = None
        elif folder and (bullet := re.match(r"- `(\w+\.py)`: \S", line)):
            paths.add(folder + bullet[1])
    return paths


def test_the_architecture_page_describes_every_module_and_no_other():
    modules = {name_of(p) for p in PACKAGE if p.name != "__init__.py"}
    folders = {name_of(p.parent) + "/" for p in PACKAGE}
    described = described_modules()
    assert modules | folders == described, (
        f"not described: {sorted((modules | folders) - described)};"
        f" described but absent: {sorted(described - modules - folders)}"
    )


def test_every_path_named_in_the_documentation_exists():
    pages = [p for p in FILES if p.suffix == ".md"]
    assert pages
    tops = "peerformer|tests|docs|examples|benchmarks|deploy|\\.ci"
    for page in pages:
        for path in re.findall(rf"`((?:{tops})/[\w./-]*)`", page.read_text()):
            assert (ROOT / path).exists(), f"{name_of(page)} names {path}"
        for link in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{name_of(page)} links to {link}"
