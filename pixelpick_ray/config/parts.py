"""External strategies, heads, oracles, data sets and formats, from files, installed packages or `register`.

The driver resolves an external part once to a name that identifies its code and enters keys:
``file:mine.py:score@<digest of the sources>``, ``score@<distribution>-<version>``, or, for editable installs and
registered parts, ``score@<digest of the sources>``. Sources are pickled with an experiment.

>>> resolved("strategy", "file:mine.py:score", Path("experiments"))
'file:mine.py:score@5f0c3d2e9a1b4c7d'
>>> load("strategy", "file:mine.py:score@5f0c3d2e9a1b4c7d")(logits)
"""

import ast
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import json
import linecache
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from pixelpick_ray.errors import SpecError

# Entry point groups by kind of part.
GROUPS = {
    "strategy": "pixelpick_ray.strategies",
    "head": "pixelpick_ray.heads",
    "oracle": "pixelpick_ray.oracles",
    "dataset": "pixelpick_ray.datasets",
    "format": "pixelpick_ray.formats",
}
# Fields of an experiment that name a part, with its kind; formats are named on the command line.
FIELDS = {
    "acquire.strategy": "strategy",
    "model.architecture": "head",
    "oracle.name": "oracle",
    "dataset.name": "dataset",
}
BY_FILE = ("strategy", "head", "oracle")  # kinds that ``file:`` supports
FILE = re.compile(r"file:(?P<path>.+\.py):(?P<name>[A-Za-z_]\w*)")
MAX_BYTES, MAX_FILES = 2**20, 200
PACKAGE = "pixelpick_code_"  # package that sources are imported into, followed by their digest
OWN = __name__.partition(".")[0]


@dataclass(frozen=True)
class Code:
    """The source of a part: (path, text) of its file and of every local module imported, relative to its folder."""

    files: tuple[tuple[str, str], ...]

    @cached_property
    def digest(self) -> str:
        """The first 16 hex digits of the SHA-256 of the sources."""
        return hashlib.sha256(json.dumps(sorted(self.files)).encode()).hexdigest()[:16]

    @property
    def main(self) -> str:
        """The part's own file."""
        return self.files[0][0]


@dataclass(frozen=True)
class Registered:
    """A part given to `register`: the digest of its source and its name there."""

    digest: str
    attribute: str


@dataclass(frozen=True)
class Shipment:
    """The sources that a process has read, for transfer to another."""

    codes: Mapping[str, Code]
    registered: Mapping[tuple[str, str], Registered]


_codes: dict[str, Code] = {}  # by digest
_registered: dict[tuple[str, str], Registered] = {}  # by kind and resolved name
_names: dict[tuple[str, str], str] = {}  # resolved names of registered parts, by kind and name
_loaded: dict[tuple[str, str], Any] = {}  # by kind and resolved name
_executing: list[str] = []  # shipped modules that are being imported


def resolved(kind: str, name: str, folder: Path | None = None) -> str:
    """The name of a part with the identity of its code appended; built-in names are returned unchanged.

    ``file:PATH:NAME`` is relative to `folder`. Raises SpecError if the file cannot be read or does not define the name.
    """
    if "@" in name:
        return name
    if name.startswith("file:"):
        return _of_file(kind, name, folder)
    if (kind, name) in _names:
        return _names[kind, name]
    point = _entry_points(kind).get(name)
    return name if point is None else f"{name}@{_identity(point)}"


def is_external(kind: str, name: str) -> bool:
    """Whether a name, resolved or not, refers to an external part."""
    return "@" in name or name.startswith("file:") or (kind, name) in _names or name in _entry_points(kind)


def names(kind: str) -> tuple[str, ...]:
    """The names of the parts of a kind that are registered or come from installed packages."""
    return (*(name for of, name in _names if of == kind), *_entry_points(kind))


def load(kind: str, name: str) -> Any:
    """Load the external part of this name, resolved or not.

    Raises SpecError if this process lacks it or has different code under its name.
    """
    whole = resolved(kind, name)
    if (kind, whole) not in _loaded:
        _loaded[kind, whole] = _load(kind, whole)
    return _loaded[kind, whole]


def register(kind: str, name: str, value: Any) -> None:
    """Make a function or class of this program available to experiments under a name, as an entry point does.

    Its source file is sent to Ray's workers and imported there, so code that starts a run belongs under
    ``if __name__ == "__main__":``. Raises SpecError for an unknown kind, an invalid name, or a value that is not
    defined at the top level of a file.
    """
    if _executing:
        return
    if kind not in GROUPS:
        raise SpecError(f"register: unknown kind {kind!r}; known: {', '.join(GROUPS)}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise SpecError(f"register: {name!r} is not a valid name; letters, digits, _, . and - are allowed")
    attribute = getattr(value, "__qualname__", "")
    try:
        file = inspect.getsourcefile(value) or ""
    except TypeError:
        file = ""
    if not attribute.isidentifier() or not Path(file).is_file():
        raise SpecError(
            f"register: {kind} {name!r}: is not a function or class at the top level of a file, so it cannot be sent "
            "to Ray's workers; move it to the top level of a .py file"
        )
    code = read_code(Path(file))
    if attribute not in _defined(code.files[0][1]):
        raise SpecError(f"register: {kind} {name!r}: {file} does not define {attribute!r} at its top level")
    whole = f"{name}@{code.digest}"
    _codes[code.digest] = code
    _names[kind, name] = whole
    _registered[kind, whole] = Registered(code.digest, attribute)
    _loaded[kind, whole] = value


def shipment() -> Shipment:
    """Everything another process needs to load the parts that this one has read."""
    return Shipment(dict(_codes), dict(_registered))


def install(shipped: Shipment) -> None:
    """Add the sources of another process; each is executed only when its part is first loaded."""
    for digest, code in shipped.codes.items():
        _codes.setdefault(digest, code)
    for key, one in shipped.registered.items():
        _registered.setdefault(key, one)


def is_executing() -> bool:
    """Whether a shipped module is being imported, which must not start a run."""
    return bool(_executing)


def code_of(name: str) -> Code | None:
    """The source of a resolved part; None for built-in parts and installed packages."""
    return _codes.get(name.rpartition("@")[2]) if "@" in name else None


def described(kind: str, name: str) -> str:
    """Human-readable origin of a resolved part."""
    code = code_of(name)
    if code is not None:
        return f"{kind} {name}: {', '.join(path for path, _ in code.files)}"
    point = _entry_points(kind).get(name.partition("@")[0])
    return f"{kind} {name}: {point.value if point else 'an installed package'}"


# Files


def read_code(path: Path) -> Code:
    """Read a file and every local module that it imports; SpecError if they cannot be read or determined."""
    found: dict[str, str] = {}
    _read(path.parent, path.name, found)
    return Code(tuple(found.items()))


def _of_file(kind: str, name: str, folder: Path | None) -> str:
    parsed = FILE.fullmatch(name)
    if parsed is None:
        raise SpecError(f"{name!r}: should be file:PATH.py:NAME, e.g. file:mine.py:score")
    if kind not in BY_FILE:
        raise SpecError(
            f"{name!r}: file: is not supported for a {kind}; use an installed package or pixelpick_ray.register"
        )
    if folder is None:
        raise SpecError(
            f"{name!r}: is relative to an experiment file, but there is none; use pixelpick_ray.register instead"
        )
    path = folder / parsed["path"]
    code = read_code(path)
    defined = _defined(code.files[0][1])
    if parsed["name"] not in defined:
        raise SpecError(f"{path} has no top-level {parsed['name']!r}; it defines {', '.join(defined) or 'nothing'}")
    _codes[code.digest] = code
    return f"file:{code.main}:{parsed['name']}@{code.digest}"


def _read(folder: Path, relative: str, found: dict[str, str]) -> None:
    """Add a file of the folder and its local imports to `found`."""
    if relative in found:
        return
    path = folder / relative
    try:
        content = path.read_bytes()
        if len(content) > MAX_BYTES:
            raise SpecError(
                f"{path}: has {len(content)} bytes, but a source is limited to {MAX_BYTES}; move its data to other "
                "files"
            )
        found[relative] = content.decode("utf-8-sig")
        tree = ast.parse(found[relative])
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read ({error})") from error
    except (SyntaxError, ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None) or "?"
        raise SpecError(f"{path}, line {line}: is not valid Python ({error})") from error
    if len(found) > MAX_FILES:
        raise SpecError(f"{folder}: more than {MAX_FILES} local modules are imported; install them as a package")
    for module, line in _imports(tree, relative, path):
        for file in _files_of(folder, module):
            try:
                _read(folder, file, found)
            except SpecError as error:
                raise SpecError(f"{error}, imported by {path}, line {line}") from error


def _imports(tree: ast.AST, relative: str, path: Path) -> Iterator[tuple[str, int]]:
    """(absolute name, line) of every module that a file may import."""
    package = list(PurePosixPath(relative).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level > len(package):
                raise SpecError(
                    f"{path}, line {node.lineno}: a relative import leaves the folder; use an absolute import "
                    "of an installed package"
                )
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *filter(None, [node.module])])
            yield module, node.lineno
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names if alias.name != "*")
        elif (isinstance(node, ast.Name) and node.id == "__import__") or (
            isinstance(node, ast.Attribute) and node.attr in ("import_module", "run_path", "run_module", "exec_module")
        ):
            raise SpecError(
                f"{path}, line {node.lineno}: imports a module dynamically; write `import NAME`, so that it can be "
                "found"
            )


def _files_of(folder: Path, module: str) -> list[str]:
    """The files in the folder that importing a module executes; empty for the standard library and this package."""
    parts = module.split(".")
    if parts[0] in sys.stdlib_module_names or parts[0] == OWN:
        return []
    found = []
    for length in range(1, len(parts) + 1):
        inner = "/".join(parts[:length])
        if (folder / inner).is_dir():
            if (folder / inner / "__init__.py").is_file():
                found.append(f"{inner}/__init__.py")
        elif (folder / f"{inner}.py").is_file():
            found.append(f"{inner}.py")
    return found


def _defined(text: str) -> list[str]:
    """The names that a source defines, assigns or imports at its top level."""
    found: list[str] = []
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.append(node.name)
        elif isinstance(node, ast.Assign):
            found += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            found.append(node.target.id)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found += [alias.asname or alias.name for alias in node.names]
    return found


# Loading


def _load(kind: str, name: str) -> Any:
    short, _, identity = name.rpartition("@")
    if name.startswith("file:"):
        return _attribute(identity, str(FILE.fullmatch(short)["name"]), name)  # type: ignore[index]
    if (kind, name) in _registered:
        one = _registered[kind, name]
        return _attribute(one.digest, one.attribute, name)
    point = _entry_points(kind).get(short)
    if point is None:
        raise SpecError(
            f"{kind} {name}: no package installed in {sys.executable} provides it; install one that does on every node"
        )
    if (mine := _identity(point)) != identity:
        raise SpecError(
            f"{kind} {short}: the driver uses {identity}, but this Python has {mine}; install the same version on "
            "every node"
        )
    try:
        return point.load()
    except Exception as error:
        raise SpecError(
            f"{kind} {short}: {point.value} cannot be imported ({type(error).__name__}: {error}); fix or reinstall "
            "its package"
        ) from error


def _attribute(digest: str, attribute: str, name: str) -> Any:
    if digest not in _codes:
        raise SpecError(f"{name}: its source is not available in this process; load the experiment from its file")
    module = PACKAGE + digest + "." + _codes[digest].main.removesuffix(".py")
    try:
        return getattr(importlib.import_module(module), attribute)
    except SpecError:
        raise
    except Exception as error:
        where = next((f", line {frame.lineno}" for frame in reversed(inspect.trace()) if PACKAGE in frame.filename), "")
        raise SpecError(
            f"{name}{where}: cannot be imported ({type(error).__name__}: {error}); correct the file"
        ) from error


class _Sources(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import hook for sources: each set is a package named after its digest, and imports within it stay inside."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        top, _, inner = fullname.partition(".")
        code = _codes.get(top.removeprefix(PACKAGE)) if top.startswith(PACKAGE) else None
        if code is None:
            return None
        paths, file = dict(code.files), inner.replace(".", "/")
        if f"{file}.py" in paths:
            return importlib.machinery.ModuleSpec(fullname, self, origin=f"{file}.py")
        is_folder = not inner or any(path.startswith(f"{file}/") for path in paths)
        origin = f"{file}/__init__.py" if f"{file}/__init__.py" in paths else None
        return importlib.machinery.ModuleSpec(fullname, self, origin=origin, is_package=True) if is_folder else None

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        if spec is None or spec.origin is None:
            return
        top = spec.name.partition(".")[0]
        text = dict(_codes[top.removeprefix(PACKAGE)].files)[spec.origin]
        file = f"<{top}/{spec.origin}>"
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
        tree = ast.fix_missing_locations(_Rename(top).visit(ast.parse(text)))
        _executing.append(spec.name)
        try:
            exec(compile(tree, file, "exec"), module.__dict__)
        finally:
            _executing.pop()


class _Rename(ast.NodeTransformer):
    """Redirect imports of local modules to their package."""

    def __init__(self, top: str) -> None:
        self._top = top
        files = (PurePosixPath(path) for path, _ in _codes[top.removeprefix(PACKAGE)].files)
        self._own = {path.parts[0].removesuffix(".py") for path in files}

    def visit_Import(self, node: ast.Import) -> list[ast.stmt]:
        """Rewrite imports; ``import a.b`` binds ``a``, so ``a`` is imported separately under that name."""
        made: list[ast.stmt] = []
        for alias in node.names:
            first = alias.name.partition(".")[0]
            if first not in self._own:
                made.append(ast.Import([alias]))
                continue
            made.append(ast.Import([ast.alias(f"{self._top}.{alias.name}", alias.asname or first)]))
            if alias.asname is None and "." in alias.name:
                made.append(ast.Import([ast.alias(f"{self._top}.{first}", first)]))
        return [ast.copy_location(one, node) for one in made]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        if node.level == 0 and node.module and node.module.partition(".")[0] in self._own:
            node.module = f"{self._top}.{node.module}"
        return node


sys.meta_path.append(_Sources())


# Installed packages


@cache
def _entry_points(kind: str) -> dict[str, EntryPoint]:
    """Entry points of a kind by name; SpecError if two packages provide the same name."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUPS[kind]):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise SpecError(
                f"{kind} {point.name!r} comes from {_distribution(other).name} and from {_distribution(point).name}; "
                "uninstall one of them"
            )
    return found


def _distribution(point: EntryPoint) -> Distribution:
    if point.dist is None:
        raise SpecError(f"entry point {point.value}: belongs to no distribution; install its package with pip")
    return point.dist


@cache
def _identity(point: EntryPoint) -> str:
    """The identity of an entry point's code, computed once per process: imported code does not change either."""
    distribution = _distribution(point)
    url = json.loads(distribution.read_text("direct_url.json") or "{}")
    if not url.get("dir_info", {}).get("editable"):
        return f"{distribution.name}-{distribution.version}"
    top = point.module.partition(".")[0]
    spec = importlib.util.find_spec(top)
    if spec is None:
        raise SpecError(f"entry point {point.value}: {distribution.name} is installed, but has no module {top}")
    folders = [Path(folder) for folder in spec.submodule_search_locations or []]
    files = sorted((path.relative_to(folder).as_posix(), path) for folder in folders for path in folder.rglob("*.py"))
    if not folders and spec.origin:
        files = [(Path(spec.origin).name, Path(spec.origin))]
    content = [[name, hashlib.sha256(path.read_bytes()).hexdigest()] for name, path in files]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
