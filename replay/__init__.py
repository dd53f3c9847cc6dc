"""From a trace to what-if: the same requests, served by other policies, on the same page tables.

Imports run one way: replay -> analyze -> collect. Nothing here needs root, bcc or the machine of the trace.
"""
