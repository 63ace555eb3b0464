# For users of microvm.nix: their `lib/runners/xen.nix`, which starts their VM as a qube by `nxl create` in the foreground. It is
# an adapter of what their options say; a qube that is declared (../modules) needs none of it.
#
# Copied or linked to that place, `microvm.hypervisor = "xen"` takes it once their `lib/default.nix` names it among the hypervisors.
# nxl is the host's own: a toolstack belongs to its Xen.
{ pkgs, microvmConfig, linuxTarget, ... }:

let
  inherit (pkgs) lib;
  inherit (microvmConfig)
    hostName preStart user vcpu mem balloon initialBalloonMem hotplugMem hotpluggedMem interfaces volumes shares devices vsock
    kernel initrdPath kernelParams credentialFiles storeDisk storeOnDisk;

  nxl = microvmConfig.xen.nxl or "nxl";
  type = microvmConfig.xen.type or "pvh";

  refusals = [
    { wrong = user != null; says = "a Xen guest is root's: microvm.user cannot be set"; }
    { wrong = shares != [ ]; says = "shares want 9p or virtiofs, which need a device model; microvm.storeOnDisk is for the store"; }
    { wrong = vsock.cid or null != null; says = "there is no vsock; nexus-call is for calls"; }
    { wrong = hotplugMem != 0 || hotpluggedMem != 0; says = "memory is not hot-plugged: microvm.balloon lets it grow and shrink"; }
    { wrong = credentialFiles != { }; says = "credentialFiles are not supported"; }
    { wrong = devices != [ ]; says = "devices are passed through by `xl pci-attach`, when the qube runs"; }
  ];
  refused = builtins.filter (refusal: refusal.wrong) refusals;

  # xvda is the store's, if it is on a disk; volumes follow. What is named relatively lies where the VM is started.
  letters = lib.stringToCharacters "abcdefghijklmnopqrstuvwxyz";
  disk = number: { target, readOnly }:
    "${if lib.hasPrefix "/" target then target else "$PWD/${target}"},raw,xvd${builtins.elemAt letters number},${if readOnly then "r" else "w"}";
  disks = lib.imap0 disk (
    lib.optional storeOnDisk { target = "${storeDisk}"; readOnly = true; }
    ++ map (volume: { target = volume.image; readOnly = volume.readOnly or false; }) volumes
  );

  nic = { type, mac, bridge ? null, ... }:
    if type == "bridge" then "mac=${mac},bridge=${bridge}"
    else throw "a Xen guest's interface is on a bridge: type = \"bridge\", not \"${type}\"";

  list = items: "[ ${lib.concatMapStringsSep ", " (item: "'${item}'") items} ]";

  # In the syntax of xl.cfg, on the command line: there $PWD is known.
  settings = [
    "name=\\\"${hostName}\\\""
    "type=\\\"${type}\\\""
    "kernel=\\\"${kernel}/${linuxTarget}\\\""
    "ramdisk=\\\"${initrdPath}\\\""
    "cmdline=\\\"console=hvc0 panic=-1 ${toString kernelParams}\\\""
    "vcpus=${toString vcpu}"
    "memory=${toString (mem - initialBalloonMem)}"
    "maxmem=${toString mem}"
    "disk=${list disks}"
    "vif=${list (map nic interfaces)}"
  ];
in
{
  inherit preStart;

  # Stays until the VM is gone, as their systemd unit wants it, and restarts it when it reboots.
  command =
    if refused != [ ] then throw "microvm.hypervisor = \"xen\": ${(builtins.head refused).says}"
    else lib.concatStringsSep " " ([ nxl "create" "-q" "-F" "/dev/null" ] ++ map (setting: "\"${setting}\"") settings);

  canShutdown = true;
  shutdownCommand = "${nxl} shutdown --wait --timeout 60 ${lib.escapeShellArg hostName} || ${nxl} destroy ${lib.escapeShellArg hostName}";

  # $SIZE is in MiB, or with a minus so much less than all.
  setBalloonScript =
    if !balloon && initialBalloonMem == 0 then null
    else ''
      case $SIZE in
        -*) SIZE=$((${toString mem} $SIZE)) ;;
      esac
      ${nxl} mem-set ${lib.escapeShellArg hostName} "$SIZE"
    '';
}
