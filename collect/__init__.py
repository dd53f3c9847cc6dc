"""directmap's live half: from a running kernel to a trace. Owns the trace format.

Importing this package needs numpy and pyarrow only; bcc and root are asked for by the recorder when it runs.
"""

from collect.errors import HostError, TraceError

__all__ = ["HostError", "TraceError", "__version__"]

__version__ = "0.1.0"
