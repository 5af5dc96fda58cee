"""Packaging lives in setup.cfg; this file lets every pip and every tool find it."""

from setuptools import setup

setup()
