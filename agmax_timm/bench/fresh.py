"""Commands of this package in processes of their own."""
import subprocess
import sys

from ..base.processes import environment


def start(argv: list[str]) -> subprocess.Popen:
    """Start this Python with arguments, and with this package wherever it is. Both outputs are one."""
    return subprocess.Popen(
        [sys.executable, *argv], env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for(argv: list[str], mark: str) -> str:
    """The first line with a mark in it of what a process writes, which is then ended; the last line without a mark.

    Raises:
        ValueError: the process failed, or ended without it.
    """
    line = ''
    process = start(argv)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if mark and mark in line:
                return line
        if process.wait() or mark:
            raise ValueError(f'a process of python {argv[0]} {argv[1]} ended: {line.strip() or process.returncode}')
        return line
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
