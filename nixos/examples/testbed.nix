# What the testbed's check of `nxl apply` declares, one after another, of qubes that run the testing systems (nixos/testing).
# `systems` has their toplevels.
{ systems }:

let
  nexus = import ../lib;

  # Policy and containers are declared; the testing guests have neither an agent nor containers,
  # and their store in the initrd.
  desk = {
    system = systems.work;
    store = null;
    type = "pv";
    memory = 160;
    maxmem = 224;
    private.size = 16;
    containers.mail.calls = [ { service = "nexus.Sign"; argument = "key"; target = "safe:gpg"; } ];
    containers.web = { };
  };
  safe = {
    system = systems.vault;
    store = null;
    type = "pv";
    memory = 160;
    containers.gpg.services."nexus.Sign".program = "/bin/sign";
  };
  # Declared, and not started.
  spare = { system = systems.office; store = null; autostart = false; };
  # What is no NixOS: a kernel, an initrd and a disk that no closure knows of.
  gateway = {
    class = "whonix";
    boot = { kernel = "/run/img/gateway/vmlinuz"; initrd = "/run/img/gateway/initrd"; cmdline = "console=hvc0 quiet panic=-1 init=/gateway"; };
    disks = [ { target = "/run/img/gateway/root"; vdev = "xvda"; access = "w"; } ];
    ready = null;
    type = "pv";
    memory = 160;
  };
  moved = {
    inherit desk spare;
    safe = safe // { system = systems.office; };
  };
in
{
  first = nexus.spec { qubes = { inherit desk safe spare; }; };

  # Changed in place: memory, a disk and an interface more, the policy.
  grown = nexus.spec {
    qubes = {
      inherit safe spare;
      desk = desk // {
        memory = 224;
        disks = [ { target = "/run/img/shared"; vdev = "xvdc"; } ];
        bridges = [ "xenbr0" ];
        containers = desk.containers // { web.calls = [ { service = "nexus.Sign"; target = "safe:gpg"; ask = true; } ]; };
      };
    };
  };

  # What cannot be changed in place: another system.
  moved = nexus.spec { qubes = moved; };

  # And one more, of the class that is no NixOS.
  foreign = nexus.spec { qubes = moved // { inherit gateway; }; };

  # One is no longer declared.
  fewer = nexus.spec {
    qubes = {
      inherit spare;
      desk = desk // { containers = { }; };
    };
  };

  none = nexus.spec { };
}
