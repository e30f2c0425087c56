"""Tests against real gRPC servers and real sockets."""
