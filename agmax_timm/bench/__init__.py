"""Measurements of speed and memory, as in docs/performance.md: python -m agmax_timm.bench --help"""
