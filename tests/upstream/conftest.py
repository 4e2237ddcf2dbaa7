"""Private and internal parts of other packages that agmax_timm relies on.

A test here fails when another package changes a part that it never promised. Its docstring says what then breaks in
agmax_timm, and where; a failure prints it.
"""
import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed and item.obj.__doc__:
        report.sections.append(('What breaks in agmax_timm', item.obj.__doc__))
    return report
