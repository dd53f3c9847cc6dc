#!/bin/busybox sh
# The guest's first process: reaches the disks and the shares, then hands over to the real root.
# Runs under busybox from the initramfs; lab/ and modules/ beside it come from the host.

bb=/bin/busybox

give_up() {
    echo "lab: $*"
    $bb poweroff -f
}

$bb mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
$bb mount -t proc proc /proc
$bb mount -t sysfs sys /sys

while read -r module; do
    $bb insmod "/modules/$module" || echo "lab: insmod $module failed"
done </modules/order

# Probing runs in the background on some kernels: give the disks a moment to show up.
tries=0
while [ ! -b /dev/vda ] || [ ! -b /dev/vdb ]; do
    tries=$((tries + 1))
    [ $tries -gt 200 ] && give_up "no disk /dev/vda and /dev/vdb after 20 s"
    $bb usleep 100000
done
$bb mount -t ext4 -o noatime /dev/vda /newroot || give_up "cannot mount the userland"
$bb mount -t ext4 -o ro,noatime /dev/vdb /newroot/kernel || give_up "cannot mount the kernel's disk"
$bb mount -o bind /newroot/kernel/modules /newroot/usr/lib/modules
$bb mount -o bind /newroot/kernel/src /newroot/usr/src
for part in /newroot/kernel/kbuild/*; do
    point=/newroot/usr/lib/${part##*/}
    $bb mkdir -p "$point" && $bb mount -o bind "$part" "$point"
done

if [ -e /lab/no-shares ]; then
    # No 9p in this kernel: the checkout is a disk, and results go to another one at the end.
    $bb mount -t ext4 -o ro,noatime /dev/vdc /newroot/repo || give_up "cannot mount the checkout"
else
    share="trans=virtio,version=9p2000.L,msize=512000"
    $bb mount -t 9p -o "$share,ro,cache=loose" repo /newroot/repo || give_up "no 9p share for /repo"
    $bb mount -t 9p -o "$share" out /newroot/out || give_up "no 9p share for /out"
fi

$bb mount -t tmpfs -o mode=755 run /newroot/run
$bb cp -r /lab /newroot/run/lab

$bb mount -o move /dev /newroot/dev
$bb mount -o move /proc /newroot/proc
$bb mount -o move /sys /newroot/sys
init=/run/lab/init.sh
if [ -e /lab/use-systemd ]; then
    # systemd starts the job as a service, once the system is up.
    wants=/newroot/run/systemd/system/multi-user.target.wants
    $bb mkdir -p "$wants"
    {
        echo "[Unit]"
        echo "Description=The lab's job"
        echo "After=systemd-udevd.service systemd-journald.service"
        echo "[Service]"
        echo "Type=exec"
        echo "ExecStart=/run/lab/job.sh"
        echo "TimeoutStopSec=5"
    } >/newroot/run/systemd/system/lab-job.service
    $bb ln -s ../lab-job.service "$wants/lab-job.service"
    init=/sbin/init
fi
exec $bb switch_root -c /dev/console /newroot "$init"
