"""The order of the house: which modules there are, which way their imports point, and how long functions may
be; read from the source."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
AT_THE_ROOT = {"main", "config", "dataset", "model", "utils"}
FLOORS = [{"utils", "model"}, {"runtime"}, {"config", "imaging", "labels"}, {"dataset", "phantom"},
          {"cohort"}, {"baselines", "evaluation"}, {"experiment"}, {"newscans"}, {"main"},
          {"studies"}]  # a room imports from floors before its own
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
ROOMS = sorted(FLOOR.keys() - AT_THE_ROOT)


def read_modules() -> dict[str, ast.Module]:
    """Name such as runtime.files -> syntax tree, of every module of the root and of the rooms."""
    paths = list(ROOT.glob("*.py"))
    for room in ROOMS:
        paths += (ROOT / room).rglob("*.py")
    modules = {}
    for path in sorted(paths):
        if path.name != "__init__.py":
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            modules[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return modules


MODULES = read_modules()


def imports_of(tree: ast.Module) -> set[str]:
    """Our modules that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & MODULES.keys()


IMPORTS = {name: imports_of(tree) for name, tree in MODULES.items()}


def room_of(module: str) -> str:
    """The room of a module, or the module itself at the root."""
    return module.split(".")[0]


def test_five_modules_lie_at_the_root():
    assert {path.stem for path in ROOT.glob("*.py")} == AT_THE_ROOT


def test_every_folder_with_modules_is_a_room_of_the_plan_with_an_empty_init():
    folders = {path.relative_to(ROOT).parts[0] for path in ROOT.glob("*/*.py")} - {"docs", "tests"}
    assert folders == set(ROOMS)
    for room in ROOMS:
        assert (ROOT / room / "__init__.py").read_bytes() == b"", room
        assert not list((ROOT / room).glob("*/*.py")), f"{room} has rooms of its own"


def test_no_import_points_upward():
    """A room imports from the floors before its own, or from itself."""
    upward = []
    for module, imported in IMPORTS.items():
        for other in imported:
            own, theirs = room_of(module), room_of(other)
            if own != theirs and FLOOR.get(theirs, 99) >= FLOOR.get(own, -1):
                upward.append(f"{module} -> {other}")
    assert not upward, sorted(upward)


def test_the_networks_import_nothing_of_ours():
    assert not IMPORTS["model"]


def test_no_modules_import_each_other_in_a_circle():
    """Modules that import nothing but what was taken away are taken away, until only circles are left."""
    left = dict(IMPORTS)
    while True:
        free = {module for module, imported in left.items() if not imported & left.keys()}
        if not free:
            break
        left = {module: imported for module, imported in left.items() if module not in free}
    assert not left, {module: sorted(imported & left.keys()) for module, imported in left.items()}


def test_every_import_from_our_rooms_names_a_module_that_is_there():
    """Also those inside functions, which no test may reach."""
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and room_of(node.module) in FLOOR:
                submodules = {f"{node.module}.{alias.name}" for alias in node.names}
                is_there = node.module in MODULES or submodules <= MODULES.keys()
                assert is_there, f"{module}, line {node.lineno}: {ast.unparse(node)}"


def test_only_the_top_floors_see_a_whole_config():
    """Elsewhere the class is at most asked for its fields: nothing makes a Config, or is annotated as one."""
    for module, tree in MODULES.items():
        if room_of(module) not in {"config", "main", "experiment", "newscans", "studies"}:
            for node in ast.walk(tree):
                if isinstance(node, ast.arg | ast.AnnAssign):
                    assert "Config" not in ast.unparse(node.annotation or ast.Constant(None)).split("."), (
                        f"{module}, line {node.lineno}"
                    )
                elif isinstance(node, ast.Call):
                    assert ast.unparse(node.func) not in ("Config", "config.Config"), (
                        f"{module}, line {node.lineno}"
                    )


def test_every_word_of_the_command_line_has_a_module_with_a_main():
    [words] = [ast.literal_eval(node.value) for node in MODULES["main"].body
               if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TOOLS"]
    assert {"preprocess", "prepare", "synthesize", "sweep", "study", "benchmark"} <= words.keys()
    for module in words.values():
        functions = {node.name for node in MODULES[module].body if isinstance(node, ast.FunctionDef)}
        assert "main" in functions, module


def test_main_imports_at_most_14_of_our_modules():
    assert len(IMPORTS["main"]) <= 14, sorted(IMPORTS["main"])


def functions_of(tree: ast.Module) -> list[ast.FunctionDef]:
    """All functions and methods, nested ones too."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_no_function_of_main_is_longer_than_35_lines():
    long = {
        function.name: function.end_lineno - function.lineno + 1 for function in functions_of(MODULES["main"])
    }
    assert not {name: lines for name, lines in long.items() if lines > 35}


def lacks_docstring(node: ast.ClassDef | ast.FunctionDef, prefix: str) -> list[str]:
    """Names of a public class or function, and of its public methods, that have no docstring."""
    if node.name.startswith("_"):
        return []
    missing = [] if ast.get_docstring(node) else [f"{prefix}{node.name}"]
    if isinstance(node, ast.ClassDef):
        for inner in node.body:
            if isinstance(inner, ast.ClassDef | ast.FunctionDef):
                missing += lacks_docstring(inner, f"{prefix}{node.name}.")
    return missing


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_a_docstring(module):
    tree = MODULES[module]
    missing = [] if ast.get_docstring(tree) else ["the module itself"]
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            missing += lacks_docstring(node, "")
    assert not missing
