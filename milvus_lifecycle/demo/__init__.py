"""The demo: a real Milvus Lite server is killed under an unmodified MilvusClient program."""
