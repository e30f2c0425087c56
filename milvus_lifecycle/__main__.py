"""`python -m milvus_lifecycle`: the command line."""

import sys

from milvus_lifecycle.cli import main

if __name__ == "__main__":
    sys.exit(main())
