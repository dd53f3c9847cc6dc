#!/bin/bash
# Runs the job and powers the guest off. The host hears of it through three virtio ports:
# out and err carry the job's output, control says "up" and "exit STATUS".

port() {
    for name in /sys/class/virtio-ports/*/name; do
        if [ "$(cat "$name")" = "lab.$1" ]; then
            echo "/dev/$(basename "$(dirname "$name")")"
            return
        fi
    done
    echo /dev/console
}

cd /repo || exit
export HOME=/root TERM=dumb LANG=C.UTF-8
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# The checkout is read-only here; the caches of Python go to the guest's own disk.
export PYTHONPYCACHEPREFIX=/var/tmp/pycache PYTHONUNBUFFERED=1

control=$(port control)
exec 3>"$control"
# A port can be opened only once; behind a pipe, /dev/stdout and /dev/stderr work as usual.
mkfifo /run/lab/stdout /run/lab/stderr
cat /run/lab/stdout >"$(port out)" 3>&- &
pumps=$!
cat /run/lab/stderr >"$(port err)" 3>&- &
pumps="$pumps $!"

ulimit -l unlimited
echo 1 >/proc/sys/kernel/printk
echo up >&3
/bin/bash /run/lab/command </dev/null >/run/lab/stdout 2>/run/lab/stderr 3>&-
status=$?
if [ -e /run/lab/no-shares ]; then
    tar -cf /dev/vdd -C /out . || status=1
fi
sync
# Something that the job left running may hold the pipes open: wait for it only so long.
for _ in 1 2 3 4 5 6 7 8 9 10; do
    # shellcheck disable=SC2086
    kill -0 $pumps 2>/dev/null || break
    sleep 0.2
done
echo "exit $status" >&3
exec 3>&-
sleep 0.2
echo o >/proc/sysrq-trigger
sleep 10
poweroff -f
