"""What pyproject.toml cannot describe: the native step, left out if it does not compile."""

import glob

from setuptools import Extension, setup

FOLDER = "gpt2kit/engine/native"

setup(
    ext_modules=[
        # A plain shared library, opened with ctypes, so that compiling it needs no Python headers.
        Extension(
            "gpt2kit.engine.native._step",
            sources=[f"{FOLDER}/{name}.c" for name in ("step", "levels", "threads")],
            depends=glob.glob(f"{FOLDER}/*.h"),
            # Without -g0, Python's own -g makes the build a third slower and the library larger.
            extra_compile_args=["-std=gnu11", "-O3", "-g0", "-Wno-psabi", "-pthread"],
            libraries=["m"],
            py_limited_api=True,
            optional=True,
        )
    ]
)
