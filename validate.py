#!/usr/bin/env python3
"""Evaluate a timm model or a checkpoint: python validate.py DIR --model NAME --checkpoint FILE"""
from agmax_timm.commands.validate import main

if __name__ == '__main__':
    main()
