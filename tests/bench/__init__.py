"""What recording costs, measured natively beside perf, bpftrace and trace-cmd: `make bench-collect`."""
