# Units of systemd's own that a system has. NixOS has a list like this one (nixos/modules/system/boot/systemd.nix); what these guests
# have no use for is not in it.
{
  units = [
    "basic.target" "sysinit.target" "sockets.target" "multi-user.target" "network.target" "network-online.target" "network-pre.target"
    "paths.target" "timers.target" "slices.target" "local-fs.target" "local-fs-pre.target" "remote-fs.target" "swap.target"
    "nss-user-lookup.target" "time-sync.target" "getty.target" "rescue.target" "emergency.target"
    "rescue.service" "emergency.service"
    "shutdown.target" "umount.target" "final.target" "exit.target" "halt.target" "poweroff.target" "reboot.target"
    "systemd-exit.service" "systemd-halt.service" "systemd-poweroff.service" "systemd-reboot.service"
    "systemd-journald.socket" "systemd-journald-dev-log.socket" "systemd-journald.service" "systemd-journald-audit.socket"
    "systemd-tmpfiles-setup.service" "machine.slice" "user.slice"
  ];

  # Hardware, the kernel and its settings are the qube's alone. There is no udev: to look at some hundred devices takes an emulated
  # processor longer than all else, and whose Xen's devices are, systemd-tmpfiles is told, too.
  unitsOfQubes = [ "systemd-sysctl.service" "systemd-tmpfiles-setup-dev.service" ];

  wants = [ "sysinit.target.wants" "sockets.target.wants" "multi-user.target.wants" "local-fs.target.wants" ];
}
