"""train.log: a log handler that survives disk errors, and whose file can be cut when a run resumes."""
import logging
import os

_logger = logging.getLogger('train')
_GAP = b'(lines that could not be written are missing here)\n'


class LogFile(logging.Handler):
    """Appends every log line to a file without buffering.

    A line that cannot be written is dropped completely. The console warns once, and the file marks the gap.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, path: str):
        super().__init__()
        self.path = path
        self._gap = self._warned = False
        self._file = open(path, 'ab', buffering=0)
        self.setFormatter(logging.Formatter('%(asctime)s %(message)s'))

    def position(self) -> int:
        """Size of the file in bytes, for atomic_write.truncate."""
        return os.fstat(self._file.fileno()).st_size

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = (self.format(record) + '\n').encode(errors='backslashreplace')
        except Exception:
            return self.handleError(record)
        try:
            self._append(_GAP + line if self._gap else line)
            self._gap = False
        except OSError as error:
            warned, self._gap, self._warned = self._warned, True, True  # first, since the warning comes here again
            if not warned:
                _logger.warning(f"cannot write '{self.path}': {error.strerror}: the missing lines are on the console")

    def _append(self, line: bytes) -> None:
        before = self.position()
        try:
            while line:
                line = line[self._file.write(line):]
        except OSError:
            os.ftruncate(self._file.fileno(), before)
            raise

    def close(self) -> None:
        self._file.close()
        super().close()


def log_to_file(path: str) -> LogFile:
    """Append every log line to a file. Close the file of an earlier run in this process."""
    for handler in [handler for handler in logging.root.handlers if isinstance(handler, LogFile)]:
        logging.root.removeHandler(handler)
        handler.close()
    handler = LogFile(path)
    logging.root.addHandler(handler)
    return handler
