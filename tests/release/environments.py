"""Install the built wheel in fresh environments and run the fast tests there: run this before a release.

    python tests/release/environments.py --oldest                       # the lowest versions that are declared
    python tests/release/environments.py --python 3.12 --python 3.13    # what pip takes today, with other Pythons

Needs uv, which finds or fetches the Pythons. On Linux PyPI's torch brings CUDA along; ``--torch cpu`` takes the smaller
builds of PyTorch's own index.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = (
    "tests/unit",
    "tests/golden",
    "tests/integration/test_frontier.py",
    "tests/integration/report/test_report_data.py",
)
TOOLS = ("hypothesis>=6.120", "plotly>=6", "psutil>=6", "pytest>=8.3")
OLDEST_PYTHON = "3.11"


def main() -> int:
    """One environment after the other; the last line says which of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--oldest", action="store_true", help=f"Python {OLDEST_PYTHON} with the lowest declared versions"
    )
    parser.add_argument("--python", action="append", default=[], help="with the newest versions; repeatable")
    parser.add_argument("--extras", default="demo,onnx", help="of slimbit")
    parser.add_argument("--torch", default="", help="torch builds as uv names them, e.g. cpu; default: those of PyPI")
    parser.add_argument("--constraint", type=Path, help="a file of pins for whatever is not asked for")
    parser.add_argument("tests", nargs="*", default=TESTS, help="what to run, as pytest takes it")
    given = parser.parse_args()
    uv = os.environ.get("UV") or shutil.which(
        "uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    if uv is None:
        parser.error("uv must be on the path: pip install uv")
    pythons = [*([OLDEST_PYTHON] if given.oldest else []), *given.python]
    if not pythons:
        parser.error("--oldest or --python must be given")
    failed = []
    for place, python in enumerate(pythons):
        oldest = given.oldest and place == 0
        options = [*(["--resolution", "lowest-direct"] if oldest else [])]
        options += ["--torch-backend", given.torch] if given.torch else []
        options += ["--constraint", str(given.constraint)] if given.constraint else []
        name = f"Python {python}, {'lowest' if oldest else 'newest'} versions"
        print(f"== {name} ==", flush=True)
        if not passes(uv, python, given.extras, options, given.tests):
            failed.append(name)
    print(f"failed: {'; '.join(failed)}" if failed else "all environments pass")
    return 1 if failed else 0


def passes(uv: str, python: str, extras: str, options: list[str], tests: list[str]) -> bool:
    """Whether the wheel can be installed in a new environment and the tests pass there."""
    with tempfile.TemporaryDirectory() as folder:
        built, home = Path(folder, "dist"), Path(folder, "environment")
        inside = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        runs = (
            [uv, "build", "--quiet", "--wheel", "--out-dir", str(built), str(ROOT)],
            [uv, "venv", "--quiet", "--python", python, str(home)],
        )
        if not all(subprocess.run(command, check=False).returncode == 0 for command in runs):
            return False
        (wheel,) = built.glob("*.whl")
        install = [uv, "pip", "install", "--quiet", "--python", str(inside)]
        wanted = [f"slimbit[{extras}] @ {wheel.as_uri()}", *TOOLS]
        old = "--resolution" in options
        if old:  # the lowest versions are those of what is named, not of what the wheel names
            named = [f"--extra={extra}" for extra in extras.split(",")]
            own = [*install, *options, "--requirements", str(ROOT / "pyproject.toml"), *named, *TOOLS]
            if subprocess.run(own, check=False).returncode:
                return False
            options, wanted = ["--no-deps"], wanted[:1]
        if subprocess.run([*install, *options, *wanted], check=False).returncode:
            return False
        subprocess.run([uv, "pip", "list", "--quiet", "--python", str(inside)], check=False)
        # the folder of the tests alone: the package that is tested is the installed one
        work = Path(folder, "work")
        ignore = shutil.ignore_patterns("__pycache__")
        for name in ("tests", "experiments", "docs"):
            shutil.copytree(ROOT / name, work / name, ignore=ignore)
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, work / name)
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [str(inside), "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", *tests]
        if old:  # old packages may warn of their own newer dependencies
            command += ["-W", "default::DeprecationWarning"]
        return subprocess.run(command, cwd=work, env=environment, check=False).returncode == 0


if __name__ == "__main__":
    raise SystemExit(main())
