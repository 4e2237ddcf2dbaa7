#!/usr/bin/env python3
"""Evaluate a timm model or a checkpoint: python validate.py DIR --model NAME --checkpoint FILE"""
from agmax_timm.run.config import parse_validate_args

if __name__ == '__main__':
    args = parse_validate_args()
    from agmax_timm.run.validation import run  # imports torch and timm: seconds that --help need not wait for
    run(args)
