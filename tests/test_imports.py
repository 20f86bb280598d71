"""The rules of the layout: rooms in one direction, Ray and MLflow at the edges, stages and methods in one place."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from qcrd.pipeline.stages import STAGES

ROOT = Path(__file__).parent.parent / "qcrd"
FILES = sorted(ROOT.rglob("*.py"))
LAYERS = "records seeding console config storage → tracking runtime tasks → teacher rationales models → distill → evaluate → report → pipeline → grids → sweeps → jobs → cli"  # noqa: E501
RAY = re.compile(r"(runtime|sweeps|jobs)/\w+|teacher/sample|distill/(train|async_negatives)|cli")
TOP = {"__init__", "__main__", "cli", "console", "records", "seeding"}
WHOLE = ("ExperimentConfig",)
MOST_WHOLE = 20
"""Parameters and fields that may hold a whole experiment, outside of what plans and runs experiments."""


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix()


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def room_imports() -> Iterator[tuple[Path, str, str]]:
    """(file, its room, a room that it imports), the room itself left out."""
    for path in FILES:
        for module in imports_of(path):
            parts = module.split(".")
            if parts[0] != "qcrd" or len(parts) == 1 or parts[1] == room_of(path):
                continue
            if (ROOT / parts[1]).is_dir() or (ROOT / f"{parts[1]}.py").is_file():
                yield path, room_of(path), parts[1]


def test_rooms_import_one_way():
    floor = {room: level for level, rooms in enumerate(LAYERS.split(" → ")) for room in rooms.split()}
    graph: dict[str, set[str]] = {room: set() for room in floor}
    for path, room, other in room_imports():
        if room in ("__init__", "__main__"):
            continue
        assert floor[other] <= floor[room], f"{path} imports qcrd.{other}"
        graph[room].add(other)
    assert set(graph) == {room_of(path) for path in FILES} - {"__init__", "__main__"}
    left = dict(graph)  # rooms of one floor do not import each other in a circle
    while free := [room for room, others in left.items() if not others & left.keys()]:
        for room in free:
            del left[room]
    assert not left, f"a circle: {left}"


def test_no_module_on_top_but_the_named():
    assert {path.stem for path in ROOT.glob("*.py")} == TOP


def test_ray_and_mlflow_are_imported_only_where_they_may_be():
    assert len(FILES) > 40
    for path in FILES:
        roots = {module.split(".")[0] for module in imports_of(path)}
        assert "ray" not in roots or RAY.fullmatch(name_of(path)), path
        assert "mlflow" not in roots or room_of(path) == "tracking", path
        assert "experiments" not in roots and "tests" not in roots, path


def constants(tree: ast.AST) -> set[str]:
    """All texts in the code that are no documentation."""
    documentation = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation
    }


def test_the_pipeline_knows_no_stage_by_name():
    names = {stage.name for stage in STAGES}
    assert len(names) == len(STAGES) == 8
    files = [path for path in (ROOT / "pipeline").glob("*.py") if path.stem != "model_identity"]
    assert len(files) >= 5
    for path in files:
        tree = ast.parse(path.read_text())
        assert not constants(tree) & names, path
        imported = {module for module in imports_of(path) if module.startswith("qcrd.pipeline.stages.")}
        assert imported <= {"qcrd.pipeline.stages.STAGES", "qcrd.pipeline.stages.stages_of"}, path
        assert not re.search("|".join(rf"\b{name}_stage\b" for name in names), path.read_text()), path


def is_whole(annotation: ast.expr | None) -> bool:
    text = "" if annotation is None else ast.unparse(annotation)
    return any(re.search(rf"\b{name}\b", text) for name in WHOLE)


def test_what_a_function_needs_is_handed_to_it():
    """Not the whole experiment, nor under another name, nor in an object that only carries it."""
    free = ("config", "pipeline", "grids", "sweeps", "cli")
    found: list[str] = []
    for path in FILES:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "name", None)
            if isinstance(node, ast.Assign | ast.TypeAlias if hasattr(ast, "TypeAlias") else ast.Assign):
                assert not (is_whole(node.value) and isinstance(node.value, ast.Name | ast.BinOp)), (
                    f"{path}:{node.lineno} is an alias of a whole experiment: {target}"
                )
        if room_of(path) in free:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.arg) and is_whole(node.annotation):
                found.append(f"{name_of(path)}:{node.lineno}")
            elif isinstance(node, ast.ClassDef):
                fields = [field for field in node.body if isinstance(field, ast.AnnAssign)]
                whole = [field for field in fields if is_whole(field.annotation)]
                assert not whole or len(fields) > 3, f"{path}: {node.name} merely carries a whole experiment"
                found += [f"{name_of(path)}:{field.lineno}" for field in whole]
        if room_of(path) != "jobs":
            text = path.read_text()
            assert "get_task(" not in text.replace("def get_task(", "") and "Storage.of(" not in text, path
    assert len(found) <= MOST_WHOLE, found


def test_a_method_is_compared_with_no_text_but_in_its_table():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare) and name_of(path) != "distill/methods":
                sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
                texts = [side for side in (node.left, *node.comparators) if isinstance(side, ast.Constant)]
                assert not (texts and any(re.search(r"\bmethod$", side) for side in sides)), f"{path}:{node.lineno}"


def test_a_teachers_kind_is_compared_with_no_text_but_by_its_backend():
    for path in FILES:
        if room_of(path) == "config" or "backends" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
                assert not any(re.search(r"\b(teacher|llm_judge)\.kind$", side) for side in sides), (
                    f"{path}:{node.lineno}"
                )


def test_no_eval_no_pickle_no_untrusted_load():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "pickle.load", "pickle.loads"), path
                assert called != "torch.load" or any(k.arg == "weights_only" for k in node.keywords), path
