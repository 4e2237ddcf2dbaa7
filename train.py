#!/usr/bin/env python3
"""Train a timm model, with AgMax or without: python train.py DIR --model NAME --agmax"""
from agmax_timm.commands.train import main

if __name__ == '__main__':
    main()
