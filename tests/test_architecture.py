"""The shape of the project: what may import what, what may not be used, how long a file may be."""

import ast
import re
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "diffsight"
SOURCES = sorted(PACKAGE.rglob("*.py"))
LONGEST_FILE = 350

# Modules that only some folders may import, wherever in a file the import stands.
ONLY_IN = {"diffusers": "backbones", "transformers": "backbones"}

# What reads code from data, changes the user's global state, or writes past logging.
FORBIDDEN_IMPORTS = {"pickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}
FORBIDDEN_CALLS = {
    "print": "log, or write through the command line's own functions",
    "eval": "parse the value",
    "exec": "parse the value",
    "torch.load": "weights are safetensors; backbones/converting/adm.py converts others, with weights_only=True",
    "yaml.load": "use yaml.safe_load",
    "torch.manual_seed": "take a seed or a NoiseBank",
    "torch.seed": "take a seed or a NoiseBank",
    "np.random.seed": "take a seed or a NoiseBank",
    "random.seed": "take a seed or a NoiseBank",
    "torch.set_num_threads": "the user's setting",
    "torch.set_default_dtype": "the user's setting",
    "torch.set_default_device": "the user's setting",
    "torch.set_grad_enabled": "use torch.no_grad() or torch.inference_mode()",
    "torch.use_deterministic_algorithms": "the user's setting",
}
# The exceptions: in which file, and with which literal argument.
ALLOWED_CALLS = {"torch.load": ("backbones/converting/adm.py", "weights_only=True")}
FORBIDDEN_ARGUMENTS = {"trust_remote_code", "allow_pickle"}


def run(*command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def where(path, node):
    return f"{path.relative_to(ROOT)}:{node.lineno}"


def top_level_imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node, node.module.split(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from ((node, a.value.split(".")[0]) for a in node.args[:1] if isinstance(a, ast.Constant))


def public_definitions(body, prefix=""):
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node.body, f"{prefix}{node.name}.")


def is_exception(path, call):
    """Whether a forbidden call is one of the exceptions, as far as its text can tell."""
    file, argument = ALLOWED_CALLS.get(ast.unparse(call.func), (None, None))
    return path.relative_to(PACKAGE).as_posix() == file and argument in map(ast.unparse, call.keywords)


def test_imports_point_one_way():
    checked = run(Path(sysconfig.get_path("scripts")) / "lint-imports", "--no-cache", "--no-logo")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_only_backbones_know_model_classes():
    offences = [
        f"{where(path, node)} imports {module}"
        for path in SOURCES
        for node, module in top_level_imports(parse(path))
        if module in ONLY_IN and path.relative_to(PACKAGE).parts[0] != ONLY_IN[module]
    ]
    assert not offences


def test_nothing_forbidden_is_used():
    offences = []
    for path in SOURCES:
        tree = parse(path)
        offences += [
            f"{where(path, node)} imports {module}"
            for node, module in top_level_imports(tree)
            if module in FORBIDDEN_IMPORTS
        ]
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            if name in FORBIDDEN_CALLS and not is_exception(path, node):
                offences.append(f"{where(path, node)} calls {name}: {FORBIDDEN_CALLS[name]}")
            offences += [f"{where(path, node)} passes {k.arg}" for k in node.keywords if k.arg in FORBIDDEN_ARGUMENTS]
    assert not offences


@pytest.mark.parametrize(
    ("file", "call", "fine"),
    [
        ("backbones/converting/adm.py", "torch.load(path, weights_only=True, mmap=mapped)", True),
        ("backbones/converting/adm.py", "torch.load(path, weights_only=False)", False),
        ("backbones/converting/adm.py", "torch.load(path, weights_only=trusted)", False),
        ("backbones/converting/adm.py", "torch.load(path)", False),
        ("backbones/converting/adm.py", "eval(path, weights_only=True)", False),
        ("backbones/loading.py", "torch.load(path, weights_only=True)", False),
    ],
)
def test_exceptions_are_narrow(file, call, fine):
    assert is_exception(PACKAGE / file, ast.parse(call).body[0].value) == fine


def test_shapes_are_checked_at_run_time():
    # Under `from __future__ import annotations` jaxtyping and beartype would see strings.
    offences = [
        where(path, node)
        for path in SOURCES
        for node, module in top_level_imports(parse(path))
        if module == "__future__"
    ]
    assert not offences


def test_imported_packages_are_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [lines for name, lines in project["optional-dependencies"].items() if name != "dev"]
    declared = {
        re.match(r"[\w-]+", line)[0].lower().replace("_", "-")
        for lines in [project["dependencies"], *extras]
        for line in lines
    }
    providers = packages_distributions()
    offences = [
        f"{where(path, node)} imports {module}"
        for path in SOURCES
        for node, module in top_level_imports(parse(path))
        if module not in sys.stdlib_module_names and module != "diffsight"
        if declared.isdisjoint(name.lower().replace("_", "-") for name in providers.get(module, [module]))
    ]
    assert not offences


def test_files_stay_short():
    files = [path for folder in ("src", "recipes", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: n for name, n in lengths.items() if n > LONGEST_FILE} == {}


def test_everything_public_is_documented():
    undocumented = [f"{path.relative_to(ROOT)}:1" for path in SOURCES if not ast.get_docstring(parse(path))]
    undocumented += [
        f"{where(path, node)} {name}"
        for path in SOURCES
        for name, node in public_definitions(parse(path).body)
        if not ast.get_docstring(node)
    ]
    assert not undocumented


def test_import_is_light():
    heavy = ["torch", "numpy", "PIL", "sklearn", "diffusers", "transformers", "typer"]
    code = f"import sys, diffsight; print([m for m in {heavy} if m in sys.modules])"
    imported = run(sys.executable, "-c", code)
    assert imported.stdout.strip() == "[]", imported.stderr


def test_public_names_resolve_and_are_listed():
    import diffsight

    for name in [*diffsight.__all__, "__version__"]:
        assert getattr(diffsight, name) is not None
        assert name in dir(diffsight)


def test_unknown_public_name_is_an_attribute_error():
    import diffsight

    with pytest.raises(AttributeError, match="no_such_thing"):
        diffsight.no_such_thing  # noqa: B018


def test_type_checkers_see_the_same_public_names():
    import diffsight

    tree = parse(PACKAGE / "__init__.py")
    seen = {
        alias.asname: node.module
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        for alias in node.names
    }
    assert seen == diffsight._HOME
