"""Sphinx configuration: Markdown pages, and the API from the docstrings."""

project = "milvus_lifecycle"
copyright = "the milvus_lifecycle authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "milvus_lifecycle"
html_static_path = ["_static"]
html_css_files = ["site.css"]
# Words that stand in docstrings between single quotes are code, as in the pages.
default_role = "code"
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 90
# Blocks that name no language are commands.
highlight_language = "sh"
# The lexer of SQL does not know DuckDB's braces.
suppress_warnings = ["misc.highlighting_failure"]
