"""The page to write in, and the policy with which a browser runs its script and nothing else."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from importlib.resources import files


@functools.cache
def page() -> tuple[bytes, str]:
    """Return the page as HTML in UTF-8, and the Content-Security-Policy to send with it.

    The policy names the page's one script and one style by their hashes. The page may ask only the
    server that it came from, and no other page can show it in a frame.
    """
    data = files("gpt2kit.serve").joinpath("page.html").read_bytes()
    policy = {
        "default-src": "'none'",
        "connect-src": "'self'",
        "script-src": _hash(data, b"script"),
        "style-src": _hash(data, b"style"),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return data, "; ".join(f"{name} {value}" for name, value in policy.items())


def _hash(data: bytes, element: bytes) -> str:
    """Return the hash of what the page's only script or style element holds."""
    (content,) = re.findall(rb"<%b>(.*?)</%b>" % (element, element), data, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"
