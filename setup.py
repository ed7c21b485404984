"""A wheel has the experiments and the templates of batch jobs in the package; all else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithExperiments(build_py):
    """Copies what a checkout has beside the package to where `config/shipped.py` looks for it."""

    def run(self) -> None:
        super().run()
        place = Path(self.build_lib, "pixelpick_ray", "shipped")
        for folder in ("experiments", "cluster"):
            shutil.copytree(folder, place / folder, dirs_exist_ok=True)
        shutil.copy("launch.py", place)


setup(cmdclass={"build_py": BuildWithExperiments})
