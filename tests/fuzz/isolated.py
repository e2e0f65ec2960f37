"""One call in a process of its own: how it ended, how long it took, what memory it had, what it ran and wrote.

The process is forked, so that torch is imported once. It has an address space of `MOST_BYTES` beyond what it starts
with, an audit hook, a bait module whose import leaves a file, and a folder of its own.
"""

import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MOST_SECONDS = 20
"""Of processor time, so that a busy machine finds nothing else; of waiting, three times as much."""
MOST_BYTES = 2 << 30
LONGEST_SENTENCE = 2000
BAIT, MARK = "evil_bait", "executed-by-a-file"
RUNS_CODE = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "pty.spawn")
CHANGES_FILES = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.truncate",
    "os.link",
    "os.symlink",
    "shutil.rmtree",
)


@dataclass(frozen=True)
class Ending:
    """How a call ended.

    Attributes:
        fault: "" if it came to an end or was refused in one sentence; else the kind of failure.
        is_refused: Whether it was refused.
        detail: The end of what it said, or where it failed.
        seconds: Wall time.
        bytes: Memory that it took beyond what it started with.
    """

    fault: str
    is_refused: bool
    detail: str
    seconds: float
    bytes: int


def run_isolated(
    call: Callable[[], object], folder: Path, *, allow_code: bool = False, seconds: int = MOST_SECONDS
) -> Ending:
    """Run a call in ``folder`` and say how it ended.

    Args:
        call: Raises `SystemExit` with a code of 1 or 2 where it refuses, as the command line does, after a sentence.
        folder: Current folder of the call.
        allow_code: Whether the call may run code that a file holds.
        seconds: Of processor time, when it is stopped.
    """
    with tempfile.TemporaryFile() as said:
        start, before = time.monotonic(), _resident()
        child = os.fork()
        if child == 0:
            _within(call, folder, said.fileno(), allow_code=allow_code, seconds=seconds)
        status, used = _wait(child, 3 * seconds)
        seconds, taken = time.monotonic() - start, max(0, used - before)
        said.seek(0)
        text = said.read(1 << 20).decode(errors="replace")
    fault, is_refused = _judged(status, text, taken)
    if (folder / MARK).exists() and not allow_code:
        fault = "code executed"
    return Ending(fault, is_refused, text, seconds, taken)


def _wait(child: int, seconds: float) -> tuple[int | None, int]:
    """Exit status, None where it was stopped, and the most memory that it had."""
    end = time.monotonic() + seconds
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            return status, usage.ru_maxrss << 10
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            return None, os.wait4(child, 0)[2].ru_maxrss << 10
        time.sleep(0.005)


def _resident() -> int:
    """Bytes of memory of this process, with which a forked one begins."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _within(call: Callable[[], object], folder: Path, output: int, *, allow_code: bool, seconds: int) -> None:
    code = 70
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (pages + MOST_BYTES, pages + MOST_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.addaudithook(_Watch(folder, allow_code=allow_code))
        warnings.simplefilter("ignore")
        code = 0
        call()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
        code = 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code & 255)


class _Watch:
    """Ends the process where it runs something, or writes anywhere but in its folder."""

    def __init__(self, folder: Path, *, allow_code: bool) -> None:
        homes = (os.environ[name] for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME") if name in os.environ)
        places = (folder, *homes)
        self.inside = tuple(os.path.realpath(place) for place in places)
        self.allow_code = allow_code
        self.is_busy = False

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.is_busy:
            return
        self.is_busy = True
        try:
            told = self._fault(event, arguments)
        finally:
            self.is_busy = False
        if told:
            os.write(2, f"\nWATCH: {told}\n".encode())
            traceback.print_stack()
            os._exit(71)

    def _fault(self, event: str, arguments: tuple[object, ...]) -> str:
        if event == "import" and arguments[0] == BAIT and not self.allow_code:
            return f"code executed: import of {BAIT}"
        if event in RUNS_CODE and not self.allow_code and sys.executable not in map(str, arguments[:1]):
            return f"code executed: {event} {str(arguments)[:200]}"
        flags = arguments[2] if event == "open" and len(arguments) > 2 else 0
        if event == "open" and isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return self._outside(event, arguments[0])
        return self._outside(event, arguments[0]) if event in CHANGES_FILES else ""

    def _outside(self, event: str, path: object) -> str:
        if not isinstance(path, str | bytes | os.PathLike):
            return ""
        place = os.path.realpath(os.fsdecode(path))
        is_inside = place.startswith((*self.inside, os.devnull, tempfile.gettempdir(), "/dev/shm"))
        return "" if is_inside else f"written elsewhere: {event} {place[:200]}"


def _judged(status: int | None, text: str, taken: int) -> tuple[str, bool]:
    """The fault, "" where there is none, and whether it was a refusal."""
    if status is None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)):
        return f"no end in {MOST_SECONDS} s", False
    if taken > MOST_BYTES:
        return "more than 2 GB", False
    if os.WIFSIGNALED(status):
        return f"crash by signal {os.WTERMSIG(status)}", False
    code = os.WEXITSTATUS(status)
    if "WATCH: " in text:
        return text.split("WATCH: ")[1].partition(":")[0], False
    if code == 70 or "Traceback (most recent call last)" in text:
        return f"traceback of {signature(text)}", False
    if code == 1 and text.strip():  # the answer is no: a file that is not exact
        return "", False
    if code in (1, 2):
        said = [line for line in text.splitlines() if line.startswith(("error: ", "Usage: "))]
        if not said:
            return "refused without a sentence", True
        if max(map(len, said)) > LONGEST_SENTENCE:
            return "a sentence without end", True
        return "", True
    return ("", False) if code == 0 else (f"exit code {code}", False)


def signature(text: str) -> str:
    """Type of the last error and the last place in Slimbit that it passed: equal faults, equal signatures."""
    errors = re.findall(r"^(\w[\w.]*(?:Error|Exception|Warning|Interrupt|Exit|Abort)\w*)\b", text, re.MULTILINE)
    places = re.findall(r'File "[^"]*(?:src|site-packages)/slimbit/([\w/]+\.py)", line (\d+)', text)
    where = ":".join(places[-1]) if places else "?"
    return f"{errors[-1] if errors else 'unknown'} at {where}"
