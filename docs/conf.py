"""The documentation's settings: `make docs`."""

from importlib import metadata

project = "detr_fast"
copyright = "the detr_fast authors"
release = metadata.version("detr_fast")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
default_role = "literal"
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures are read in the source's own words; sections tell shapes and dtypes
autodoc_default_options = {"members": True, "inherited-members": False}
napoleon_custom_sections = [("Attributes", "params_style")]

html_theme = "furo"
html_title = "detr_fast"
html_copy_source = False
