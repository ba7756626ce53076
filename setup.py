"""Installs the package, its presets, tables and page files, and one console script per entry."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = Path(__file__).parent
ENTRIES = [
    "train", "sample", "pre_encode", "codes", "make_corpus", "demo", "serve", "fetch", "export", "align", "make_ids",
    "unwrap", "features",
]  # fmt: skip
SHARED = ["hparams", "data/ids", "data/singer"]  # in the clone, or in jukebox/_share (hparams/presets.py, share_folder)


def shared_files() -> list[str]:
    """The presets and tables, relative to the clone."""
    return [str(path.relative_to(HERE)) for top in SHARED for path in sorted((HERE / top).rglob("*")) if path.is_file()]


class BuildWithShared(build_py):
    """Puts a copy of the presets and tables inside the built package."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the clone itself is read
            return
        for name in shared_files():
            target = Path(self.build_lib, "jukebox", "_share", name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(HERE / name, target)


class SdistWithShared(sdist):
    """Takes the presets and tables along in a source archive."""

    def add_defaults(self) -> None:
        super().add_defaults()
        self.filelist.extend(shared_files())


setup(
    name="jukebox-toolkit",
    version="0.1.0",
    description="A hierarchical VQ-VAE with transformer priors over its codes, to train, sample and listen to.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8") if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["jukebox", "jukebox.*"]),
    package_data={"jukebox": ["py.typed"], "jukebox.pages": ["*.html", "*.css", "*.js"]},
    cmdclass={"build_py": BuildWithShared, "sdist": SdistWithShared},
    entry_points={
        "console_scripts": [
            f"jukebox-{name.replace('_', '-')}=jukebox.{name}:main"
            for name in ENTRIES
            if (HERE / "jukebox" / f"{name}.py").exists()
        ]
    },
    install_requires=[
        "torch>=2.10",
        "mpi4py>=4.1",
        "mpich>=4.2; platform_system != 'Windows'",
        "numpy",
        "numba>=0.62",
        "librosa>=0.10",
        "av>=17.1",
        "tensorboardX>=2.6.2",
        "soundfile>=0.12",
        "soxr>=0.5",
        "tqdm",
        "safetensors",
        "anyascii",
        "pydantic>=2",
        "pyyaml",
    ],
    extras_require={
        "tensorboard": ["tensorboard>=2.21"],
        "hydra": ["hydra-core>=1.3"],
        "s3": ["fsspec", "s3fs"],
        "test": [
            "pytest>=9",
            "pytest-timeout>=2.4",
            "pytest-xdist>=3.8",
            "hypothesis>=6",
            "playwright>=1.60",
            "pillow",
            "tensorboard>=2.21",
            "setuptools>=68",
            "ruff",
            "mypy",
            "types-PyYAML",
            "hydra-core>=1.3",
            "s3fs",
            "moto[server]>=5",
            "nbclient>=0.11",
            "ipykernel>=7",
        ],
    },
)
