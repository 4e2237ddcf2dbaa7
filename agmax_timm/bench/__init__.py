"""Benchmarks of speed and memory for docs/benchmarks.md: python -m agmax_timm.bench --help"""
