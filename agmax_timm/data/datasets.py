"""Former place of create_dataset."""
from .sources.datasets import create_dataset

__all__ = ['create_dataset']
