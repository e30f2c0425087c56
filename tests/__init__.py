"""Tests of milvus_lifecycle."""
