"""Adds the recipes of hparams/ to the package as agmax_timm/hparams. Everything else is in setup.cfg."""
from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=['agmax_timm*']), 'agmax_timm.hparams'],
    package_dir={'agmax_timm.hparams': 'hparams'},
)
