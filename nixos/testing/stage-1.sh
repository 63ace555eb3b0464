#!@shell@
# Stage 1 of a testing guest: what a NixOS initrd does before it hands over to the system's init.
export PATH=@busybox@/bin

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run

while read -r module; do
    case $module in
        # One channel of 1 MiB both ways takes 513 grants, and a guest serves several.
        xen-gntalloc) insmod /modules/$module.ko limit=8192 ;;
        *) insmod /modules/$module.ko ;;
    esac
done < /modules/order
mount -t xenfs xenfs /proc/xen

init=
for word in $(cat /proc/cmdline); do
    case $word in init=*) init=${word#init=} ;; esac
done
if [ ! -x "$init" ]; then
    echo "stage 1: no init at '$init': the command line must carry init= of the system"
    poweroff -f
fi
exec "$init"
