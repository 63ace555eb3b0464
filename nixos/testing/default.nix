# The systems that the testbed boots, assembled from Debian's kernels and busybox by plain
# derivations: no nixpkgs, no network, and yet closures that nothing downstream can tell from a
# NixOS generation's.
#
#   busybox   file: a static busybox
#   kernels   folder: NAME/vmlinuz, NAME/version, NAME/modules/*.ko, one NAME for each codec
#   tools     folder: bin/ and lib/, what the guests run beside busybox
#   packages  folder: NAME/bin, NAME/lib …, what guests with systemd are made of (./packages.nix)
#
# `nix-build -A work` yields /nix/store/…-nixos-system-work-…; `-A demo`, `-A demo-next` and `-A demo-disposable` the qubes.json of nixos/examples/demo.nix, of
# demo-next.nix, and of the first with a template of disposable qubes, whose systems are built with it; `-A network` that of network.nix.
{ busybox, kernels, tools, packages }:

let
  shell = import ./shell.nix { inherit busybox; };
  guestTools = builtins.path { name = "guest-tools"; path = tools; };

  system = { name, kernel }: import ./system.nix {
    inherit shell name;
    kernel = import ./kernel.nix { inherit shell; name = kernel; source = kernels + "/${kernel}"; };
    tools = guestTools;
  };

  # The 6.12 kernel: a container's root and the folders that it shares with its qube are tmpfs, which Linux shows it with its own
  # users from 6.3 on.
  nixos = import ./systemd {
    inherit shell;
    pkgs = pkgs // { lib = import ../tests/module-system.nix; };
    kernel = import ./kernel.nix { inherit shell; name = "zstd"; source = kernels + "/zstd"; };
  };
  pkgs = import ./packages.nix { inherit shell packages; };

  # A declaration as dom0's module evaluates it, with what stands for NixOS here.
  declared = declaration: import ../outside.nix {
    nixpkgs = null;
    pkgs = pkgs // { lib = import ../tests/module-system.nix; };
    declaration = declaration // { inherit (nixos) evalConfig; package = pkgs.nexus; };
  };

  # What the testbed adds to each qube: that it serves jobs. And for a machine without hardware virtualisation it is PV, which takes
  # less than half as long, and has one vCPU: two of Linux 6.12 on one emulated processor wait for each other for ever, now and then
  # (stop_machine).
  serving = declaration: declaration // {
    qubes = builtins.mapAttrs
      (name: qube: qube // {
        type = "pv";
        vcpus = 1;
        # An emulated processor that others use, too, takes its time.
        ready.timeout = 1200;
        # What a check has run as root, by a rule.
        users = if name == "shop" then [ "root" ] else [ ];
        config = { imports = [ ./systemd/jobs.nix qube.config or { } ]; };
      })
      declaration.qubes;
  };
in
rec {
  demo = declared (serving (import ../examples/demo.nix));
  demo-next = declared (serving (import ../examples/demo-next.nix));

  # The demo with a template of disposable qubes, which never runs itself, and a container that may call one.
  demo-disposable = declared (serving (
    let demo = import ../examples/demo.nix; in
    demo // {
      qubes = demo.qubes // {
        shop = demo.qubes.shop // { defaultDisposable = "sheet"; };
        sheet = {
          memory = 320;
          autostart = false;
          disposableTemplate = true;
          private.size = 64;
          # It says who calls, and what it is itself; and is refused when it calls somebody.
          services."nexus.Once".program = "/run/current-system/sw/bin/once";
          config = { pkgs, ... }: {
            environment.systemPackages = [
              (pkgs.writeShellScriptBin "once" ''
                PATH=/run/current-system/sw/bin
                read -r line
                echo "$1 $QREXEC_REMOTE_DOMAIN $line"
                echo "kept: $(ls /var/lib | grep -c mark)"
                echo "its volume: $(grep -c '^/dev/xvd.* /var/lib ' /proc/mounts)"
                nexus-call vault nexus.Sign < /dev/null
                echo "refused: $?"
                exit 7
              '')
            ];
          };
        };
      };
      policy.rules = demo.policy.rules ++ [ { service = "nexus.Once"; source = "shop:front"; target = "@dispvm"; action = "allow"; } ];
    }
  ));

  # The example of a netvm, whose way out is an address in dom0's network, and a qube that has no netvm: a light one.
  network = declared (
    let
      inherit (builtins) mapAttrs;
      example = import ../examples/network.nix;
      ofContainers = {
        browser.resources = { cpuWeight = 50; tasks = 48; };
        notes.autostart = false;
      };
      served = serving (example // {
        qubes = example.qubes // {
          # What they may use, and that one does not start by itself, is for the check alone.
          web = example.qubes.web // {
            containers = mapAttrs (name: container: container // ofContainers.${name}) example.qubes.web.containers;
          };
          net = example.qubes.net // {
            config = { pkgs, ... }: {
              environment.systemPackages = [ pkgs.nftables ];
              systemd.services.uplink = {
                description = "The way out";
                wantedBy = [ "multi-user.target" ];
                path = [ pkgs.iproute2 ];
                serviceConfig = { Type = "oneshot"; RemainAfterExit = true; };
                script = ''
                  until [ -e /sys/class/net/eth0 ]; do sleep 0.2; done
                  ip address replace 192.168.77.2/24 dev eth0
                  ip link set eth0 up
                  ip route replace default via 192.168.77.1
                '';
              };
            };
          };
        };
      });
    in
    served // {
      qubes = served.qubes // { lone = { system = vault; store = null; type = "pv"; memory = 160; ready = null; }; };
    }
  );

  # What stands for nixpkgs where a command line of the documents says <nixpkgs> (tests/testbed/src/closure.rs), and for its
  # nixos/lib/eval-config.nix.
  nixpkgs = pkgs // {
    lib = import ../tests/module-system.nix;
    rustPlatform.buildRustPackage = _: pkgs.nexus;
  };
  inherit (nixos) evalConfig;

  # The names say what the guest is for in the demo; the kernel's codec is what tells them apart.
  work = system { name = "work"; kernel = "xz"; };
  vault = system { name = "vault"; kernel = "zstd"; };
  office = system { name = "office"; kernel = "lz4"; };
}
