"""Errors that a user can act on, and the exit statuses of commands that end with one."""
from .text import one_line

# Packages of the extras, by the name under which they are imported.
_EXTRAS = {'cv2': 'fast', 'simplejpeg': 'fast', 'imagecorruptions': 'robust', 'webdataset': 'wds', 'datasets': 'hf',
           'onnx': 'onnx', 'onnxruntime': 'onnx', 'onnxscript': 'onnx', 'matplotlib': 'plot',
           'tensorboard': 'tensorboard', 'wandb': 'wandb', 'shtab': 'completion'}


class UserError(Exception):
    """An error whose cause the user can remove. The message is one line: what is wrong, where, and the remedy.

    Attributes:
        exit_status: Exit status of a command that ends with the error.
    """
    exit_status = 2


class OptionError(UserError, ValueError):
    """Options that do not fit the data, the model or each other. The message names the flag and the value."""


class CheckpointError(UserError, ValueError):
    """A file of weights that cannot be used. The message names the file."""


class DataError(UserError, ValueError):
    """Data that does not fit the options. The message names the folder or the flag, and what was found."""


class SampleError(DataError):
    """A sample that cannot be used.

    If a loader worker raised the error, torch gives it the traceback of the worker as its message. The line of the
    error is at the end of that.
    """

    def __str__(self) -> str:
        return super().__str__().rpartition(f'{type(self).__module__}.{type(self).__name__}: ')[2].rstrip()


class DamagedError(SampleError):
    """Samples that cannot be decoded: one sample in evaluation, too many samples in training."""


class LabelError(SampleError):
    """A label that is not a class index. The message names the sample and the value."""


class WorkerError(UserError, RuntimeError):
    """A loader worker that died. The message has torch's reason and the remedy."""
    exit_status = 1


class MemoryLimitError(UserError, RuntimeError):
    """Too little memory on the device or the machine."""
    exit_status = 1


def as_user_error(error: BaseException) -> UserError | None:
    """Convert an error of any library to one that a user can act on. None if the traceback is more useful.

    Converted are: an error of the operating system, such as a full disk; a loader worker that died; too little memory;
    a package of an extra that is not installed; Ctrl-C and SIGTERM.
    """
    if isinstance(error, UserError):
        return error
    if isinstance(error, KeyboardInterrupt):
        stopped = UserError(str(error) or 'interrupted')
        stopped.exit_status = getattr(error, 'exit_status', 130)
        return stopped
    if isinstance(error, OSError) and error.strerror and not isinstance(error, ConnectionError):
        return UserError(f"'{error.filename}': {error.strerror}" if error.filename else error.strerror)
    if isinstance(error, RuntimeError) and 'DataLoader worker (pid' in str(error):  # not what a worker itself raised
        return WorkerError(f'a loader worker died: {one_line(error, 300)}. Out of memory? Use fewer --workers')
    of_driver = 'CUDA error: out of memory' in str(error)  # also if memory of the machine cannot be pinned
    too_large = isinstance(error, MemoryError) or type(error).__name__ == 'OutOfMemoryError'  # torch's
    if too_large or of_driver or 'DefaultCPUAllocator' in str(error):
        other = ', or --no-pin-mem if the memory of the machine is full' if of_driver else ''
        return MemoryLimitError(f'out of memory: {one_line(error, 200)}. Use a smaller batch{other}')
    if isinstance(error, ModuleNotFoundError) and error.name in _EXTRAS:
        return UserError(f"the package '{error.name}' is not installed: pip install "
                         f"'agmax_timm[{_EXTRAS[error.name]}]'")
    return None
