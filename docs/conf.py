"""Settings of the site: ``python -m sphinx -W --keep-going -b html docs docs/_build/html``."""

import importlib.metadata

project = "backdoor_audit"
release = importlib.metadata.version("backdoor-audit")
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]

smartquotes = False  # two hyphens begin an option
default_role = "py:obj"  # single backticks in docstrings name things of the package
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
myst_heading_anchors = 4  # so that links to headings, as GitHub makes them, are checked

html_theme = "furo"
html_title = f"backdoor_audit {release}"
html_show_sourcelink = False
