"""train.log: whole lines, of a run that continues when the disk refuses them, and cut where a resumed run continues."""
import logging
import os

_logger = logging.getLogger('train')
_GAP = b'(lines that could not be written are missing here)\n'


class LogFile(logging.Handler):
    """Appends every log line to a file, at once.

    A line that cannot be written is left out whole: the first time the console says so, and the file where.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: str):
        super().__init__()
        self.path = path
        self._gap = self._told = False
        self._file = open(path, 'ab', buffering=0)
        self.setFormatter(logging.Formatter('%(asctime)s %(message)s'))

    def position(self) -> int:
        """Size of the file in bytes, for durable.cut."""
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
            told, self._gap, self._told = self._told, True, True  # before it is told, which comes here again
            if not told:
                _logger.warning(f'cannot write {self.path}: {error.strerror}: the console has the lines that it lacks')

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
