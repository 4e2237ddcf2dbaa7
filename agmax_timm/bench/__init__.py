"""Measurements on your own data and machine of what docs/performance.md says: python -m agmax_timm.bench --help"""
