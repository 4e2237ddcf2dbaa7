"""Random transforms seeded by sample: results do not depend on worker, rank, batch and order."""
import random
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ...base.random_state import kept_random_state
from ...base.wrapping import passed_on


def sample_seed(seed: int, index: int) -> int:
    """Return a seed of 32 bits for a sample. With seed + index, samples of different seeds would share seeds."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


class SeededDataset(Dataset):
    """A map-style data set that seeds the generators for each sample.

    Args:
        dataset: Data set with a `transform`.
        seed: Seed from which the seeds of all samples are derived.
    """
    transform = passed_on('dataset', 'transform')

    def __init__(self, dataset: Any, seed: int):
        self.dataset = dataset
        self.seed = seed

    def __getitem__(self, index: int):
        seed = sample_seed(self.seed, index)
        with kept_random_state():
            random.seed(seed)
            np.random.seed(seed)
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs
            return self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)
