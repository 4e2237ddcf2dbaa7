"""The report of a run as one HTML page: python -m agmax_timm.report --help"""
