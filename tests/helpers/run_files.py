"""Reading and writing files in the folder of a run."""
import csv
from argparse import Namespace

import torch
from PIL import Image


def load(path):
    """A checkpoint. Its options are the only pickled object that is allowed."""
    with torch.serialization.safe_globals([Namespace]):
        return torch.load(path, weights_only=True)


def summary(folder):
    """The rows of summary.csv as text."""
    with open(folder / 'summary.csv', newline='') as f:
        return list(csv.DictReader(f))


def epochs_in(folder):
    """The epochs with a row in summary.csv."""
    return [int(row['epoch']) for row in summary(folder)]


def status_of(command, argv):
    """The exit status of a command with these arguments."""
    try:
        command(argv)
    except SystemExit as end:
        return end.code
    return 0


def write_small_curves(summary_path, output_path):
    """Write an empty picture. log.plot_curves takes longer than all other parts of a small run."""
    Image.new('RGB', (8, 8)).save(output_path)
