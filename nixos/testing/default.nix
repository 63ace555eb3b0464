# The systems that the testbed boots, assembled from Debian's kernels and busybox by plain
# derivations: no nixpkgs, no network, and yet closures that nothing downstream can tell from a
# NixOS generation's.
#
#   busybox   file: a static busybox
#   kernels   folder: NAME/vmlinuz, NAME/version, NAME/modules/*.ko, one NAME for each codec
#   tools     folder: bin/ and lib/, what the guests run beside busybox
#
# `nix-build -A work` yields /nix/store/…-nixos-system-work-….
{ busybox, kernels, tools }:

let
  shell = import ./shell.nix { inherit busybox; };
  guestTools = builtins.path { name = "guest-tools"; path = tools; };

  system = { name, kernel }: import ./system.nix {
    inherit shell name;
    kernel = import ./kernel.nix { inherit shell; name = kernel; source = kernels + "/${kernel}"; };
    tools = guestTools;
  };
in
{
  # The names say what the guest is for in the demo; the kernel's codec is what tells them apart.
  work = system { name = "work"; kernel = "xz"; };
  vault = system { name = "vault"; kernel = "zstd"; };
  office = system { name = "office"; kernel = "lz4"; };
}
