# A system closure with the shape of a NixOS generation: kernel, initrd, init, kernel-params,
# nixos-version, system and a bootspec v1 boot.json.
#
# One thing differs from a NixOS with a disk, and only in where it lies: these guests have no disk,
# so what stage 1 would find in the mounted /nix/store travels in the initrd. An initrd cannot hold
# the toplevel that refers to it; stage 2 is therefore a store path of its own, which toplevel/init
# points to and which `init=` names.
{ shell, name, kernel, tools }:

let
  version = "22.11.testing";

  # In the order in which stage 1 loads them: the later ones use symbols of the earlier.
  modules = [
    "xen-privcmd" "xenfs" "xen-evtchn" "xen-gntdev" "xen-gntalloc" "xen-blkfront" "xen-netfront"
    "crc32c_generic" "libcrc32c" "erofs"
  ];

  stage2 = shell.run "stage-2-${name}" {
    script = ./stage-2.sh;
    jobs = ./jobs.sh;
    shellPath = "${shell.package}/bin/sh";
    inherit tools;
    busybox = shell.package;
    hostName = name;
  } ''
    mkdir $out
    sed -e "s|@shell@|$shellPath|" -e "s|@busybox@|$busybox|" -e "s|@tools@|$tools|" \
        -e "s|@hostName@|$hostName|" -e "s|@jobs@|$jobs|" $script > $out/init
    chmod 755 $out/init
  '';

  initrd = import ./initrd.nix { inherit shell kernel; } name {
    # What the store of the running guest has: the closure of stage 2.
    contents = stage2;
    inherit modules;
    attributes = {
      script = ./stage-1.sh;
      shellPath = "${shell.package}/bin/sh";
      busybox = shell.package;
    };
    script = ''
      sed -e "s|@shell@|$shellPath|" -e "s|@busybox@|$busybox|" $script > $root/init
      chmod 755 $root/init
    '';
  };

  label = "NixOS ${version} (${name})";
  kernelParams = [ "console=hvc0" "quiet" "panic=-1" ];

  spec = {
    inherit label kernelParams;
    system = "x86_64-linux";
    init = "${stage2}/init";
    kernel = "${kernel}/bzImage";
    initrd = "${initrd}/initrd";
    # The builder alone knows its own output path.
    toplevel = "@toplevel@";
  };
in
shell.run "nixos-system-${name}-${version}" {
  inherit kernel initrd stage2 version;
  kernelParams = toString kernelParams;
  boot = builtins.toJSON {
    "org.nixos.bootspec.v1" = spec;
    "org.nixos.specialisation.v1" = { };
  };
  passAsFile = [ "boot" ];
} ''
  mkdir $out
  ln -s $kernel/bzImage $out/kernel
  ln -s $kernel/modules $out/kernel-modules
  ln -s $initrd/initrd $out/initrd
  ln -s $stage2/init $out/init
  printf %s "$kernelParams" > $out/kernel-params
  printf %s "$version" > $out/nixos-version
  printf %s x86_64-linux > $out/system
  sed "s|@toplevel@|$out|" $bootPath > $out/boot.json
''
