"""The one part of the package that pyproject.toml cannot describe: the native decode step, which is left out where it does not compile."""

from setuptools import Extension, setup

FOLDER = "gpt2kit/engine/native"

setup(
    ext_modules=[
        # No Python extension module but a plain shared library, opened with ctypes: it needs no Python headers to be compiled.
        Extension(
            "gpt2kit.engine.native._step",
            sources=[f"{FOLDER}/{name}.c" for name in ("step", "levels", "threads")],
            depends=[f"{FOLDER}/{name}.h" for name in ("step", "kernels", "shortlist", "threads")],
            extra_compile_args=["-std=gnu11", "-O3", "-Wno-psabi", "-pthread"],
            libraries=["m"],
            py_limited_api=True,
            optional=True,
        )
    ]
)
