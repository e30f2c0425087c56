"""Sphinx configuration: Markdown pages, nothing else."""

project = "milvus_lifecycle"
copyright = "the milvus_lifecycle authors"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_title = "milvus_lifecycle"
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing", "misc.highlighting_failure"]
