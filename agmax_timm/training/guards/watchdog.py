"""Ends a run that hangs, and names the rank that hangs and its place in the code."""
import faulthandler
import os
import re
import sys
import threading
import time
import traceback

import torch

from ...base.distributed import is_distributed, rank, world_size
from ...base.presence import Presence
from ...base.signals import EXIT_STATUS

# Functions in which a rank meets the others: collectives, and DDP's within the forward and backward pass.
_WAITING = {'all_reduce', 'broadcast', 'barrier', 'all_gather', 'gather', 'all_gather_object', 'gather_object',
            'all_gather_single', 'all_gather_into_tensor', '_pre_forward', '_engine_run_backward'}
# Collectives of NCCL return at once. The host waits for them when it reads from the device: in torch's function
# `synchronize`, or in a line that calls a method of a tensor, which has no frame of its own.
_READING = re.compile(r'\.(item|tolist|cpu|numpy|synchronize)\(|\.to\(|\bbool\(|\bfloat\(')


class Watchdog:
    """A context that ends the process if there is no beat for --hang-timeout seconds.

    If one rank hangs, all others wait for it. Each rank prints its place in the code, so one of them shows the cause.
    The others name a rank that cannot print, because its process is stopped or lost.

    Args:
        seconds: Value of --hang-timeout. 0 never ends the process.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.device: torch.device | None = None  # set when it is known
        self.period = min(10., self.seconds / 4)
        self.presence: Presence | None = None  # for several ranks, from the first beat on
        self._last: float | None = None  # None before the first beat, since compiling may take long
        self._done = threading.Event()

    def __enter__(self) -> 'Watchdog':
        if self.seconds:
            threading.Thread(target=self._guard, name='watchdog', daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.end()

    def end(self) -> None:
        """Stop watching, before work that may take long."""
        self._done.set()

    def beat(self) -> None:
        """Record that an update or a batch of an evaluation is done."""
        self._last = time.monotonic()

    def _guard(self) -> None:
        woke = time.monotonic()
        while not self._done.wait(self.period):
            slept, woke = time.monotonic() - woke, time.monotonic()
            if self._last is None:
                continue
            if slept > 2 * self.period:  # this process itself was suspended
                self._last += slept - self.period
            if is_distributed():
                self.presence = self.presence or Presence(rank(), world_size(), self.period)
                self.presence.beat()
            if time.monotonic() - self._last > self.seconds:
                self._end()

    def _end(self) -> None:
        place = self._place()
        if self.presence is not None:
            self.presence.leave()
        print(f'{os.path.basename(sys.argv[0])}: error: rank {rank()}: nothing has happened for '
              f'{self.seconds:g} s (--hang-timeout), {place}. Continue with --resume auto', file=sys.stderr)
        faulthandler.dump_traceback(all_threads=True)
        sys.stderr.flush()
        os._exit(EXIT_STATUS)

    def _place(self) -> str:
        stack = traceback.extract_stack(sys._current_frames()[threading.main_thread().ident or 0])
        if is_distributed() and (any(frame.name in _WAITING for frame in stack) or self._reads(stack[-1])):
            silent = self.presence.silent() if self.presence is not None else []
            missing = f": rank {', '.join(map(str, silent))} does not answer" if silent else ''
            return f'it waits for the other ranks{missing}'
        frame = stack[-1]
        return f'it hangs in {frame.name}, {frame.filename}:{frame.lineno}'

    def _reads(self, frame: traceback.FrameSummary) -> bool:
        """Whether the main thread reads from a device, so that it may wait for a collective there."""
        on_device = self.device is not None and self.device.type != 'cpu'
        return on_device and (frame.name == 'synchronize' or bool(_READING.search(frame.line or '')))
