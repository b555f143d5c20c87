"""Builds the documentation: `make docs`, which takes every warning for an error."""

from rvpn import __version__

project = "rvpn"
copyright = "the rvpn contributors"  # noqa: A001  # Sphinx's name
version = release = __version__

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "benchmarks/*.md"]  # the latter are included

highlight_language = "none"  # what names no language is a shell's or a report, and no Python

html_theme = "furo"
html_title = f"rvpn {__version__}"
