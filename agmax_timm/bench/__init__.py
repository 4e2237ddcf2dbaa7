"""Benchmarks of speed and memory for docs/performance.md: python -m agmax_timm.bench --help"""
