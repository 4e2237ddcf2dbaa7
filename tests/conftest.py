"""Settings of each process of the tests. The fixtures are in tests/helpers/fixtures.py."""
import gc
import os

# Before torch is imported, here and in subprocesses: the networks are tiny, and threads on few cores slow each other.
os.environ.setdefault('OMP_NUM_THREADS', '1')


def pytest_configure(config):
    """Import the fixtures, and with them torch, unless this process only distributes the tests to others."""
    runs_tests = config.getoption('dist', 'no') == 'no' or config.option.collectonly
    if runs_tests:
        gc.disable()  # until all modules are imported: the collector would traverse their objects again and again
        config.pluginmanager.import_plugin('tests.helpers.fixtures')


def pytest_collection_finish():
    gc.freeze()
    gc.enable()
