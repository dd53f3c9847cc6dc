"""The report of a trace: one page, its pictures and numbers."""
