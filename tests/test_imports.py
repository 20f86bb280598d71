"""The import rules of the design: one direction, Ray and MLflow at the edges."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "qcrd").rglob("*.py"))
RAY = {
    "teacher/sample.py", "distill/train.py", "distill/async_negatives.py", "evaluate/stage.py", "pipeline.py",
    "search_space.py", "tune_search.py", "tune_trial.py", "run_sweep.py", "submit.py", "cli.py",
}  # fmt: skip
MLFLOW = {"mlflow_view.py", "mlflow_runs.py", "mlflow_student.py"}
BASE = ("config", "grid", "sweep", "recipes", "overrides", "seeding", "records", "storage", "artifacts", "json_lines",
        "mlflow_view", "tracking", "mlflow_runs", "console")  # fmt: skip
LAYERS = [*([name] for name in ("tasks",)), ["teacher", "rationales"], ["distill"], ["evaluate"], ["report"],
          ["sweep_record", "search_space"], ["stages"], ["pipeline", "cell_files"], ["tune_search", "tune_trial"],
          ["run_grid"], ["plan_grid"], ["plan_sweep"], ["sweep_children"], ["run_sweep", "compare"],
          ["job"], ["submit"], ["cli"]]  # fmt: skip


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


def layer_of(module: str) -> int | None:
    part = module.split(".")[1] if "." in module else ""
    if part in BASE:
        return -1
    return next((level for level, names in enumerate(LAYERS) if part in names), None)


def test_ray_and_mlflow_are_imported_only_where_they_may_be():
    assert len(FILES) > 40
    for path in FILES:
        name = path.relative_to(ROOT / "qcrd").as_posix()
        roots = {module.split(".")[0] for module in imports_of(path)}
        assert "ray" not in roots or name in RAY, name
        assert "mlflow" not in roots or name in MLFLOW, name
        assert "experiments" not in roots and "tests" not in roots, name


def test_imports_point_one_way():
    for path in FILES:
        own = layer_of("qcrd." + path.relative_to(ROOT / "qcrd").with_suffix("").as_posix().replace("/", "."))
        if own is None:
            continue
        for module in imports_of(path):
            other = layer_of(module) if module.startswith("qcrd.") else None
            assert other is None or other <= own, f"{path} imports {module}"


def test_no_eval_no_pickle_no_untrusted_load():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "pickle.load", "pickle.loads"), path
                assert called != "torch.load" or any(k.arg == "weights_only" for k in node.keywords), path
