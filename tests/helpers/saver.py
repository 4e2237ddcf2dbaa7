"""Checkpoint savers of a tiny model."""
from argparse import Namespace

import torch
from timm.task import ClassificationTask

from agmax_timm.training.checkpoints.saver import create_saver


def make_saver(folder, history=2, decreasing=False, side=4):
    model = torch.nn.Linear(side, side)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return create_saver(str(folder), ClassificationTask(model, verbose=False), optimizer,
                        Namespace(checkpoint_hist=history, model='linear'), {'metrics': {}}, decreasing=decreasing)
