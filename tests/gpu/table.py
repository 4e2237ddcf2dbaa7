"""Write into a document which tests of tests/gpu passed on which device, from the files of their runs.

python tests/gpu/table.py gpu.json [cpu.json ...] --write docs/benchmarks.md
"""
import argparse
import ast
import json
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
BEGIN, END = '<!-- tests/gpu: begin -->', '<!-- tests/gpu: end -->'


def sections():
    """First sentence of each file of tests, by the file's name."""
    docs = {path.name: ast.get_docstring(ast.parse(path.read_text())) for path in sorted(HERE.glob('test_*.py'))}
    return {name: text.splitlines()[0].rstrip('.') for name, text in docs.items()}


def outcomes(results, file):
    """Outcomes of the tests of a file, such as '3 passed, 1 failed'."""
    counts = Counter(test['outcome'] for name, test in results['tests'].items() if name.split('::')[0] == file)
    return ', '.join(f'{counts[word]} {word}' for word in ('passed', 'failed', 'skipped') if counts[word]) or 'not run'


def title(results):
    machine = results['machine']
    name = machine['device'] if machine['kind'] == 'cuda' else 'CPU form'
    return f"{name}, torch {machine['torch'].split('+')[0]}"


def row(*cells):
    return f"| {' | '.join(cells)} |"


def number(value):
    return f'{value:.4g}' if isinstance(value, float) else str(value)


def render(files):
    """Lines of the tables: sections by device, then what was measured on CUDA."""
    on_cuda = [results for results in files if results['machine']['kind'] == 'cuda']
    columns = [(title(results), results) for results in files]
    if not on_cuda:
        columns.insert(0, ('CUDA', dict(tests={})))
    lines = [row('what', *(name for name, _ in columns)), row(*['---'] * (1 + len(columns)))]
    for file, text in sections().items():
        lines.append(row(text, *(outcomes(results, file) for _, results in columns)))
    for results in on_cuda:
        lines += ['', f'Measured on {title(results)}:', '', row('test', 'value'), row('---', '---')]
        lines += [row(f'`{name}`', '; '.join(f'{what}: {number(value)}' for what, value in test['measured'].items()))
                  for name, test in results['tests'].items() if test['measured']]
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('results', nargs='+', type=Path, metavar='JSON', help='files that tests/gpu wrote')
    parser.add_argument('--write', type=Path, metavar='FILE', help='document with the lines to replace')
    args = parser.parse_args()
    table = '\n'.join(render([json.loads(path.read_text()) for path in args.results]))
    if args.write is None:
        print(table)
        return
    before, _, rest = args.write.read_text().partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        parser.error(f'--write {args.write} lacks the lines {BEGIN} and {END}')
    args.write.write_text(f'{before}{BEGIN}\n\n{table}\n\n{END}{after}')


if __name__ == '__main__':
    main()
