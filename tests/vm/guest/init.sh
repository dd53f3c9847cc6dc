#!/bin/sh
# Process 1 of a guest without systemd: mounts what a tracer expects to find, then runs the job.

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mkdir -p /dev/pts /dev/shm
# Shells and bpftrace look for these; udev, or systemd, would have made them.
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs tmp /tmp
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t securityfs securityfs /sys/kernel/security 2>/dev/null
ip link set lo up
hostname lab
# The job is a child, so that process 1 stays to reap whatever the job leaves behind.
/run/lab/job.sh &
wait $!
# Not reached while all is well: the job ends with the machine.
poweroff -f
