"""The harness sees what it is there for: a check that cannot fail is none."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, sys
from pathlib import Path
sys.path.insert(0, {place!r})
from isolated import run_isolated
folder = Path({folder!r})

def refuse():
    sys.stderr.write("error: weights must be whole, got half\\n")
    sys.exit(2)

def run():
    import evil_bait

def fill():
    kept = [bytes(1 << 28) for _ in range(20)]

calls = {{
    "fine": lambda: None, "refused": refuse, "traceback": lambda: 1 / 0, "silent": lambda: sys.exit(2),
    "code": run, "command": lambda: os.system("true"), "memory": fill, "crash": lambda: os.abort(),
    "elsewhere": lambda: open("/var/written-elsewhere", "w"),
}}
for name, call in calls.items():
    ending = run_isolated(call, folder)
    print(name, "|", ending.fault, "|", ending.is_refused)
def busy():
    while True:
        pass
print("hang |", run_isolated(busy, folder, seconds=1).fault)
"""
EXPECTED = """
fine |  | False
refused |  | True
traceback | traceback of ZeroDivisionError at ? | False
silent | refused without a sentence | True
code | code executed | False
command | code executed | False
memory | traceback of MemoryError at ? | False
crash | crash by signal 6 | False
elsewhere | written elsewhere | False
hang | no end in 20 s
"""


def test_every_fault_is_seen(tmp_path: Path) -> None:
    (tmp_path / "evil_bait.py").write_text("")
    program = PROGRAM.format(place=str(Path(__file__).parent), folder=str(tmp_path))
    home = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    child = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True, env=home
    )
    assert child.stdout.strip() == EXPECTED.strip()
