"""What the documents tell a reader to type must exist."""

import ast
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
from typer.main import get_command

ROOT = Path(__file__).parents[1]
DOCUMENTS = [path for pattern in ("*.md", "docs/*.md") for path in sorted(ROOT.glob(pattern))]


def blocks(*languages):
    for path in DOCUMENTS:
        for language, text in re.findall(r"^```(\w+)\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S):
            if language in languages:
                yield path.name, text


def commands(program):
    for document, text in blocks("bash", "sh", "console"):
        for line in text.replace("\\\n", " ").splitlines():
            line = line.removeprefix("$ ").removeprefix(".venv/bin/")
            if line.startswith(f"{program} "):
                yield pytest.param(re.split(r"\s(?:\||>|&&)\s|\s#\s", line)[0], id=f"{document}: {line[:60]}")


@pytest.mark.parametrize("line", list(commands("diffsight")))
def test_commands_and_their_options_exist(line):
    from diffsight.cli import app

    command = get_command(app)
    words = shlex.split(line)[1:]
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help", "-h"}
    assert not hasattr(command, "commands") or known.issuperset(words), f"no such command: {line}"
    assert {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)} <= known


@pytest.mark.parametrize("line", list(commands("make")))
def test_make_targets_exist(line):
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert set(line.split()[1:]) <= set(targets)


@pytest.mark.parametrize("text", [pytest.param(text, id=document) for document, text in blocks("python")])
def test_python_examples_use_names_that_exist(text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "diffsight":
            assert all(hasattr(import_module(node.module), alias.name) for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "diffsight":
            assert hasattr(import_module("diffsight"), node.attr)


@pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in DOCUMENTS])
def test_links_inside_the_project_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if not re.match(r"https?:|mailto:", target):
            file, _, anchor = target.partition("#")
            linked = (path.parent / file).resolve() if file else path
            assert linked.exists(), target
            titles = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.M) if anchor else []
            assert not anchor or anchor in {re.sub(r"[^\w\- ]", "", t).lower().replace(" ", "-") for t in titles}, (
                target
            )
