"""Installs the package, its presets, tables and page files, and one console script per entry."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
ENTRIES = [
    "train", "sample", "pre_encode", "codes", "make_corpus", "demo", "serve", "fetch", "export", "align", "make_ids",
]  # fmt: skip

setup(
    name="jukebox-toolkit",
    version="0.1.0",
    description="A hierarchical VQ-VAE with transformer priors over its codes, to train, sample and listen to.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8") if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["jukebox", "jukebox.*"]),
    install_requires=[
        "torch>=2.10",
        "mpi4py>=4.1",
        "mpich>=4.2; platform_system != 'Windows'",
        "numpy",
        "librosa>=0.10",
        "av>=17.1",
        "tensorboardX>=2.6.2",
        "soundfile>=0.12",
        "tqdm",
        "safetensors",
        "anyascii",
        "pydantic>=2",
        "pyyaml",
    ],
)
