"""Asking people: pairs in a browser, answers in a file, how far to trust them, and teaching a policy with them."""
