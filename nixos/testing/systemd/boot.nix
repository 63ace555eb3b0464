# The initrd of a qube with systemd: what its file systems and modules are, it has from the qube's configuration.
{ shell, pkgs, kernel, config, name, version }:

let
  inherit (builtins) attrNames concatStringsSep elem filter map;

  # In the order in which they are loaded: the later ones use symbols of the earlier. systemd-modules-load would want the indexes
  # that depmod makes; so stage 1 loads what `boot.kernelModules` names, too.
  order = [
    "xen-privcmd" "xenfs" "xen-evtchn" "xen-gntdev" "xen-gntalloc" "xen-blkfront" "xen-netfront"
    "crc32c_generic" "libcrc32c" "erofs" "crc16" "mbcache" "jbd2" "ext4"
  ];
  # And those that NAT takes, where a netvm's driver is named: each takes an emulated processor its time.
  ofNetvms = [
    "xen-netback" "nfnetlink" "nf_tables" "nf_defrag_ipv4" "nf_defrag_ipv6" "nf_conntrack" "nf_nat" "nft_chain_nat" "nft_ct" "nft_masq"
    "nft_fib" "nft_fib_ipv4"
  ];
  modules = order ++ (if elem (builtins.head ofNetvms) config.boot.kernelModules then ofNetvms else [ ]);
  unknown = filter (module: !(elem module modules)) (config.boot.kernelModules ++ config.boot.initrd.availableKernelModules);

  # A path comes after those above it.
  mounts = filter (path: path == "/" || config.fileSystems.${path}.neededForBoot or false) (attrNames config.fileSystems);
  line = path:
    let fs = config.fileSystems.${path}; flag = name: if fs.${name} or false then name else "-"; in
    "${path} ${fs.device} ${fs.fsType} ${concatStringsSep "," (fs.options or [ "defaults" ])} ${flag "autoFormat"} ${flag "autoResize"}\n";

  stage1 = shell.run "stage-1-${name}" {
    script = ./stage-1.sh;
    inherit (pkgs) busybox e2fsprogs;
  } ''
    mkdir $out
    sed -e "s|@busybox@|$busybox|" -e "s|@e2fsprogs@|$e2fsprogs|" $script > $out/init
    chmod 755 $out/init
  '';
in
if unknown != [ ] then throw "the testing systems do not know the kernel module ${builtins.head unknown}" else
{
  initrd = import ../initrd.nix { inherit shell kernel; } name {
    contents = stage1;
    inherit modules;
    attributes = {
      inherit stage1;
      mounts = concatStringsSep "" (map line mounts);
      options = config.boot.extraModprobeConfig or "";
      passAsFile = [ "mounts" "options" ];
    };
    script = ''
      mkdir $root/sysroot
      cp $mountsPath $root/mounts
      cp $optionsPath $root/modules/options
      ln -s $stage1/init $root/init
    '';
  };
}
