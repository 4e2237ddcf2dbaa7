#!/usr/bin/env python3
"""Time and memory of the folder index against timm's, on empty files in a temporary folder that is removed after.

Usage: python tools/bench_index.py [CLASSES [IMAGES_PER_CLASS [REPEATS]]], by default 1000 1000 5
"""
import gc
import os
import random
import statistics
import sys
import tempfile
import time

from timm.data.readers.reader_image_folder import ReaderImageFolder
from torch.utils.data import DataLoader

from agmax_timm.data.folder import FolderReader


def private_mib():
    with open('/proc/self/smaps_rollup') as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith(('Private_Clean', 'Private_Dirty'))) / 1024


def worker_memory(reader):
    """Private MiB of a loader's worker after parts of the samples, in random order."""
    def collate(indices):
        for index in indices:
            reader[index][0].close()
        return private_mib()

    grown = list(DataLoader(range(len(reader)), len(reader) // 100, shuffle=True, num_workers=1, collate_fn=collate))
    return ', '.join(f'{grown[percent - 1]:.0f} after {percent}%' for percent in (1, 12, 50, 100))


def main(classes=1000, images=1000, repeats=5):
    seconds = {ReaderImageFolder: [], FolderReader: []}
    with tempfile.TemporaryDirectory() as root:
        for folder in (f'n{7919 * number:08d}' for number in range(classes)):
            os.mkdir(os.path.join(root, folder))
            for image in random.sample(range(20 * images), images):
                os.close(os.open(os.path.join(root, folder, f'{folder}_{image}.JPEG'), os.O_CREAT))
        for kind in [*seconds] * (repeats + 1):
            start = time.perf_counter(), time.process_time()
            reader = kind(root)
            seconds[kind].append((time.perf_counter() - start[0], time.process_time() - start[1]))
            del reader
            gc.collect()
        for clock, name in enumerate(('wall', 'CPU')):  # without the first of each, which warms the cache
            theirs, ours = ([pair[clock] for pair in pairs[1:]] for pairs in seconds.values())
            ratio = statistics.median(b / a for a, b in zip(theirs, ours))
            print(f'{name} seconds {statistics.median(theirs):.2f}, {statistics.median(ours):.2f}, ratio {ratio:.3f}')
        for kind in seconds:
            print(f'{kind.__name__}: private MiB of a worker: {worker_memory(kind(root))}')
        print(f'{FolderReader(root).nbytes / (classes * images):.1f} bytes a sample')


if __name__ == '__main__':
    main(*map(int, sys.argv[1:]))
