"""Former place of create_dataset."""
from .sources.dataset_factory import create_dataset

__all__ = ['create_dataset']
