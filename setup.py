"""Adds the experiments and batch job templates to wheels; everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithExperiments(build_py):
    """Copy the files next to the package to where `config/shipped.py` looks for them."""

    def run(self) -> None:
        super().run()
        place = Path(self.build_lib, "pixelpick_ray", "shipped")
        for folder in ("experiments", "cluster"):
            shutil.copytree(folder, place / folder, dirs_exist_ok=True)
        shutil.copy("launch.py", place)


setup(cmdclass={"build_py": BuildWithExperiments})
