"""Asking people: pairs in a browser, answers in a file, how far to trust them, and teaching a policy with them."""

import importlib.util

from experiments.harness.errors import UsageError

for package in ("starlette", "uvicorn", "krippendorff"):
    if importlib.util.find_spec(package) is None:
        raise UsageError(
            f"the page for people needs {package}: make label installs it, or pip install 'jaxpref[label]'"
        )
