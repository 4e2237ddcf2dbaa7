#!/usr/bin/env python3
"""Train a timm model, with AgMax or without: python train.py DIR --model NAME --agmax"""
from agmax_timm.run.config import parse_train_args

if __name__ == '__main__':
    args = parse_train_args()
    from agmax_timm.run.training import run  # imports torch and timm: seconds that --help and a mistake need not wait
    run(args)
