"""The doors on real machines: gRPC network, compute threads, files and SQLite, and the node that joins them."""

import os

# gRPC reads these when it is loaded: whom it refused is our log's business, and a node never forks with open channels.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
