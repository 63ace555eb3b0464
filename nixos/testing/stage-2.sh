#!@shell@
# Stage 2 of a testing guest: says what it sees of the machine, then serves jobs until it is told
# to go.
#
# A job is a shell command that dom0 writes to data/job as "NUMBER COMMAND". The guest clears the
# node, runs the command with its output on the console between two marker lines, and writes the end
# of that output to data/job-output and "NUMBER STATUS" to data/job-status. So one boot serves many
# checks, with nothing but xenstore.
export PATH=@tools@/bin:@busybox@/bin HOME=/root

mkdir -p /root /etc
ln -s @tools@/lib /lib
ln -s @tools@/lib /lib64
ln -s @busybox@/bin /bin
hostname @hostName@
ip link set lo up

echo "@report begin"
echo "hostname $(hostname)"
echo "kernel $(uname -r)"
echo "vcpus $(grep -c '^processor' /proc/cpuinfo)"
echo "memory-kib $(awk '/^MemTotal/ { print $2 }' /proc/meminfo)"
echo "cmdline $(cat /proc/cmdline)"
grep 'System RAM' /proc/iomem | while read -r range rest; do echo "ram $range"; done
for device in evtchn gntdev gntalloc privcmd xenbus; do
    test -c /dev/xen/$device && echo "device $device"
done
echo "@report end"

serve() {
    number=${1%% *}
    echo "@job $number begin"
    sh -c "${1#* }" < /dev/null > /run/job-output 2>&1
    status=$?
    cat /run/job-output
    echo "@job $number end $status"
    # A message of xenstore holds 4 KiB. -R: as it is, without reading escapes into it.
    xenstore-write -R data/job-output "$(tail -c 2000 /run/job-output)"
    xenstore-write data/job-status "$number $status"
}

leave() {
    # The toolstack takes the empty node for "seen".
    xenstore-write control/shutdown ""
    echo "@shutdown $1"
    case $1 in
        reboot) reboot -f ;;
        *) poweroff -f ;;
    esac
}

xenstore-write control/feature-poweroff 1
xenstore-write control/feature-reboot 1
xenstore-write data/ready 1

# Each watch fires once when it is set, and then for every write beneath it.
xenstore-watch data/job control/shutdown | while read -r path; do
    case $path in
        control/shutdown)
            request=$(xenstore-read control/shutdown 2>/dev/null)
            test -z "$request" || leave "$request"
            ;;
        data/job)
            job=$(xenstore-read -R data/job 2>/dev/null)
            test -n "$job" || continue
            xenstore-write data/job ""
            serve "$job"
            ;;
    esac
done
echo "stage 2: xenstore-watch ended"
poweroff -f
