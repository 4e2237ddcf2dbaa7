"""Images for tests, which identify them by their pixels."""
import numpy as np
from PIL import Image
from torch.utils.data import Dataset

CLASSES = ('ant', 'bee', 'cat')
PER_CLASS = 4


def gradient_image(height, width, blue=0):
    """Red is the column and green the row, 0 to 255, so a crop can be read from its pixels; blue is constant."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)[None, :]
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    pixels[..., 2] = blue
    return Image.fromarray(pixels)


class MemoryDataset(Dataset):
    """Images in memory with their index, or a label each, as target."""

    def __init__(self, images, targets=None):
        self.images = images
        self.targets = range(len(images)) if targets is None else targets
        self.transform = None

    def __getitem__(self, index):
        image = self.images[index].copy()
        return image if self.transform is None else self.transform(image), self.targets[index]

    def __len__(self):
        return len(self.images)
