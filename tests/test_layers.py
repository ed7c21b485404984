"""The layers of the architecture, checked on the source: imports go downward, heavy packages stay where they belong."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "pixelpick_ray"
# A module may import its own layer and those after it.
LAYERS = [
    set(names.split(" "))
    for names in (
        *("cli __main__", "api testing", "runner report annotate", "status", "estimate", "search", "planning"),
        *("running", "asking", "training", "context", "engine", "loop checks", "tasks", "active models", "data"),
        *("store events", "config", "errors supervisor"),
    )
]
TORCH_FREE = """
config.experiment config.keys store data.labels data.datasets data.cache data.description data.answers data.scenes
events tasks loop checks planning search.design status annotate.server annotate.transfer report.files report.search cli
"""


def level(part: str) -> int:
    return next(number for number, names in enumerate(LAYERS) if part in names)


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, type checking apart."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def test_every_module_belongs_to_a_layer_and_imports_go_downward() -> None:
    parts = {path: path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in modules()}
    assert set(parts.values()) == set().union(*LAYERS)
    wrong = []
    for path, part in parts.items():
        for name in imports(path):
            package, _, rest = name.partition(".")
            other = rest.partition(".")[0]
            if package == "pixelpick_ray" and other in parts.values() and level(other) < level(part):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert wrong == []


ALLOWED = {
    "ray": {f"runner/{name}.py" for name in ("tune", "search", "searchers", "ranks", "cluster", "survey")},
    "torch.distributed": {"engine/world.py"},
    "timm": {"models/backbones.py", "models/network_list.py", "engine/world.py"},
}


def test_a_heavy_package_is_imported_only_where_it_belongs() -> None:
    for package, allowed in ALLOWED.items():
        used = {path: any(f"{name}.".startswith(f"{package}.") for name in imports(path)) for path in modules()}
        assert {str(path.relative_to(PACKAGE)) for path in used if used[path]} == allowed


def test_planning_and_reporting_import_neither_torch_nor_ray() -> None:
    """In one process, one after another; nor do the names of the package itself that plan and report."""
    code = f"""
import importlib, sys
import pixelpick_ray as pp
pp.load, pp.plan, pp.results
for module in {TORCH_FREE!r}.split():
    importlib.import_module("pixelpick_ray." + module)
    if found := sorted(sys.modules.keys() & {{'torch', 'ray', 'timm', 'torchvision', 'scipy.stats'}}):
        sys.exit(f"{{module}} imports {{found}}")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert (done.returncode, done.stderr) == (0, "")


PATHS = re.compile(r"""["'/](?:fit|pick|evaluation|question|split|leases|attempts|damaged|unfinished|answers)/[{<]""")


def test_paths_inside_the_store_are_composed_in_one_module() -> None:
    """And chain records are read in one: nothing else knows how their fields are spelt in a file."""
    wrong = [
        f"{path.relative_to(PACKAGE)}: {line.strip()}"
        for path in modules()
        if path != PACKAGE / "store" / "paths.py"
        for line in path.read_text(encoding="utf-8").splitlines()
        if PATHS.search(line) or re.search(r"record(?:\.get\(|\[)[\"']|chains/\{|experiments/\{", line)
    ]
    assert wrong == []


def test_the_method_is_on_one_screen() -> None:
    text = (PACKAGE / "loop.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    for step in ("Fit(", "evaluations", "Pick("):
        assert step in text


def test_no_type_has_the_name_of_another() -> None:
    """Classes and aliases of the whole package, private ones among them."""
    found: dict[str, list[str]] = {}
    for path in modules():
        for node in tree(path).body:
            names = [node.name] if isinstance(node, ast.ClassDef) else []
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript | ast.BinOp | ast.Name):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            for name in names:
                if name.strip("_")[:1].isupper() and not name.isupper() and len(name) > 1:
                    found.setdefault(name, []).append(str(path.relative_to(PACKAGE)))
    assert {name: places for name, places in found.items() if len(places) > 1} == {}
