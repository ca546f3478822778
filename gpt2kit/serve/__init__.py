"""The HTTP server: OpenAI's completions for programs on this machine (needs gpt2kit[serve])."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpt2kit.errors import MissingDependencyError

if TYPE_CHECKING:
    from gpt2kit.serve.asgi import application as application
    from gpt2kit.serve.settings import Settings as Settings

__all__ = ["Settings", "application"]


def __getattr__(name: str) -> object:
    # Only when they are asked for: the command line needs the settings without Starlette.
    if name == "application":
        require_packages()
        from gpt2kit.serve.asgi import application

        return application
    if name == "Settings":
        from gpt2kit.serve.settings import Settings

        return Settings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def require_packages() -> None:
    """Raise MissingDependencyError, which says what to type, without Starlette or uvicorn."""
    for package in ("starlette", "uvicorn"):
        try:
            __import__(package)
        except ImportError:
            raise MissingDependencyError(package, extra="serve") from None
