"""What setup.cfg cannot say: packages found in five roots, where its `find:` knows one. The rest stands there."""

from setuptools import find_packages, setup

ROOTS = {
    "tracekit": ".",
    "tracekit_torch": "hooks/torch",
    "tracekit_llama_cpp": "hooks/llama_cpp",
    "tracekit_onnx": "hooks/onnx",
    "tracekit_cli": "cli",
}

setup(
    packages=[
        found for package, root in ROOTS.items() for found in find_packages(root, include=[package, f"{package}.*"])
    ],
    package_dir={package: f"{root}/{package}".removeprefix("./") for package, root in ROOTS.items()},
)
