"""Finds the packages: folders at the top of the repository are parts of ``dynllava``."""

from setuptools import find_packages, setup

PLACED = {"dynllava.analysis": "analysis", "dynllava.paper": "results/paper"}

packages = find_packages(include=["dynllava", "dynllava.*"]) + find_packages("plugins")
for name, folder in PLACED.items():
    packages += [name, *(f"{name}.{inner}" for inner in find_packages(folder))]

setup(
    packages=packages,
    package_dir={**PLACED, "lmms_eval_dynllava": "plugins/lmms_eval_dynllava"},
)
