"""What tests read in a run's folder, and what they write there."""
import csv
from argparse import Namespace

import torch
from PIL import Image


def load(path):
    """A checkpoint, with nothing else of pickle's than its options."""
    with torch.serialization.safe_globals([Namespace]):
        return torch.load(path, weights_only=True)


def summary(folder):
    """The rows of summary.csv, as text."""
    with open(folder / 'summary.csv', newline='') as f:
        return list(csv.DictReader(f))


def epochs_in(folder):
    """The epochs that summary.csv has a row for."""
    return [int(row['epoch']) for row in summary(folder)]


def status_of(command, argv):
    """The exit status of a command that is called with these arguments."""
    try:
        command(argv)
    except SystemExit as end:
        return end.code
    return 0


def write_small_curves(summary_path, output_path):
    """Write an empty picture in place of log.plot_curves, which takes longer than all other parts of a small run."""
    Image.new('RGB', (8, 8)).save(output_path)
