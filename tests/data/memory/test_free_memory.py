"""How much memory a process may use: amounts and shares, and the free memory of the machine and its control groups."""
import pytest

from agmax_timm.data.memory import free_memory as module
from agmax_timm.data.memory.free_memory import free_memory, memory_limit

GIB = 2 ** 30


@pytest.mark.parametrize('amount, expected', [('8G', 8 * 2 ** 30), ('1.5m', 3 * 2 ** 19), ('0', 0), (0, 0)])
def test_amounts_of_memory_are_read(amount, expected):
    assert memory_limit(amount) == expected


def test_a_share_of_memory_is_divided_by_the_processes_of_the_machine(monkeypatch):
    monkeypatch.setattr(module, 'free_memory', lambda: 1000)
    assert memory_limit('0.25') == 250
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '4')
    assert memory_limit('0.2') == 50


@pytest.mark.parametrize('amount', ['1.5', '-1', 'nan', '-2G', 'infG'])
def test_invalid_amounts_of_memory_are_refused(amount):
    with pytest.raises(ValueError):
        memory_limit(amount)


def test_free_memory_is_plausible():
    assert 2 ** 20 < free_memory() < 2 ** 50


@pytest.mark.parametrize('said, share', [('8(x2)', 8), ('2,1', 2), ('1', 1)])
def test_a_share_of_memory_is_divided_by_the_tasks_of_slurm(said, share, monkeypatch):
    monkeypatch.setattr(module, 'free_memory', lambda: 1000)
    monkeypatch.delenv('LOCAL_WORLD_SIZE', raising=False)
    monkeypatch.setenv('SLURM_STEP_TASKS_PER_NODE', said)
    assert memory_limit('0.8') == int(0.8 * (1000 // share))


def test_free_memory_is_0_if_the_system_does_not_report_it(monkeypatch):
    def fail(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(module.Path, 'read_text', fail)
    assert memory_limit('0') == 0 and memory_limit('0.1') == 0 and memory_limit('1G') == GIB


def group(folder, names, limit, used, cached):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (limit, used)):
        (folder / name).write_text(f'{value}\n')
    (folder / 'memory.stat').write_text(f'anon 5\n{names[2]} {cached}\n')


V1 = ('memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_inactive_file')
V2 = ('memory.max', 'memory.current', 'inactive_file')


@pytest.mark.parametrize('line, root, names', [('0::/job/step', '', V2), ('4:cpu,memory:/job/step', 'memory', V1)])
def test_each_control_group_limits_memory(line, root, names, tmp_path):
    """The groups of the process and those above it count. Memory that only caches files is free."""
    own = tmp_path / 'cgroup'
    own.write_text(f'7:cpuset:/elsewhere\n{line}\n')
    mounted = tmp_path / 'mounted'
    assert list(module._free_in_groups(mounted, own)) == []
    group(mounted / root / 'job', names, 8 * GIB, 7 * GIB, 2 * GIB)
    assert list(module._free_in_groups(mounted, own)) == [3 * GIB]
    group(mounted / root / 'job' / 'step', names, 'max', GIB, 0)
    assert list(module._free_in_groups(mounted, own)) == [3 * GIB]
    group(mounted / root / 'job' / 'step', names, 2 * GIB, GIB, 0)
    assert list(module._free_in_groups(mounted, own)) == [GIB, 3 * GIB]


def test_a_container_sees_its_own_group_at_the_root(tmp_path):
    (tmp_path / 'cgroup').write_text('0::/out/of/sight\n')
    group(tmp_path / 'mounted', V2, 4 * GIB, GIB, 0)
    assert list(module._free_in_groups(tmp_path / 'mounted', tmp_path / 'cgroup')) == [3 * GIB]
