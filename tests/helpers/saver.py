"""Checkpoint savers of a tiny model."""

import torch
from timm.task import ClassificationTask

from agmax_timm.options.parsers import saved_train_options
from agmax_timm.training.checkpoints.saver import CheckpointSaver


def make_saver(folder, history=2, decreasing=False, side=4):
    model = torch.nn.Linear(side, side)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = saved_train_options(dict(checkpoint_hist=history, model='linear'))
    task = ClassificationTask(model, verbose=False)
    return CheckpointSaver(str(folder), task, optimizer, options, {'metrics': {}}, decreasing=decreasing)
