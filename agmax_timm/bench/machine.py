"""The machine that figures are of, in a line."""
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..base.processes import cores

_PACKAGES = ('torch', 'timm', 'torchvision', 'pillow', 'opencv-python-headless', 'simplejpeg')


def describe() -> str:
    """Model of the CPU, the cores that this process may use, versions of what is measured."""
    return f'{_cpu()}, {cores()} cores; Python {platform.python_version()}, ' + ', '.join(
        f'{package} {_version(package)}' for package in _PACKAGES)


def _cpu() -> str:
    with suppress(OSError):
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    with suppress(PackageNotFoundError):
        return version(package)
    return 'missing'
