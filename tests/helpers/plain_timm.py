"""Run programs in processes that have never imported this package: forks of a process that imported timm alone."""
import functools
import json
import subprocess
import sys
import tempfile

from tests.helpers.paths import REPOSITORY

# The first line of a program that may import this package, after timm.
ALLOW_AGMAX = f'import sys; del sys.modules["agmax_timm"]; sys.path.insert(0, {str(REPOSITORY)!r})\n'

SERVER = '''
import json, os, sys, traceback
sys.modules['agmax_timm'] = None  # an import of it fails, installed or not, unless the program allows it
import PIL.Image, timm, torch

for line in sys.stdin:
    code, arguments, folder, output, errors = json.loads(line)
    child = os.fork()
    if not child:
        status = 1
        try:
            os.chdir(folder)
            for number, path, mode in (0, os.devnull, 'r'), (1, output, 'w'), (2, errors, 'w'):
                with open(path, mode) as file:
                    os.dup2(file.fileno(), number)
            sys.argv[1:] = arguments
            exec(code, {'__name__': '__main__'})
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(os.waitpid(child, 0)[1], flush=True)
'''


@functools.cache
def _start_server():
    return subprocess.Popen(
        [sys.executable, '-I', '-c', SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run_in_plain_timm(code, *arguments, cwd):
    """Return what a program prints in this folder with these arguments. It must not raise."""
    server = _start_server()
    with tempfile.NamedTemporaryFile('r') as output, tempfile.NamedTemporaryFile('r') as errors:
        job = [code, [str(argument) for argument in arguments], str(cwd), output.name, errors.name]
        print(json.dumps(job), file=server.stdin, flush=True)
        assert server.stdout.readline() == '0\n', errors.read()
        return output.read()
