"""The VM lab: boots a real Debian kernel in QEMU and runs a job in it as root.

``python3 -m tests.vm`` from the top of the checkout; see ``__main__`` for its commands.
"""
