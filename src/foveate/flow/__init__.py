"""From a processor's inputs to a shorter prompt: read, encode, plan, choose, shrink.

Everything but which tokens stay is worked out on the host, while the device encodes (docs/architecture.md).
"""
