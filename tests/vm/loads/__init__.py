"""Loads: programs that run in the guest and make the kernel change its direct map.

Each runs alone, as root, on Python 3.11 or newer with nothing but the standard library:
``python3 tests/vm/loads/churn.py --seed 1``. Special pages only scatter over memory when ordinary
allocations run between them, so a load is made of many real processes.
"""
