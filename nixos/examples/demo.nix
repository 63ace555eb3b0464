# Two qubes, three containers, a policy: `nexus = import ./demo.nix;` in dom0's configuration, or `outside.nix` for a dom0 that is no
# NixOS.
{
  host.memory = 4096;

  qubes.shop = {
    memory = 768;
    maxmem = 1024;
    vcpus = 2;
    private.size = 2048;
    tags = [ "business" ];

    config = { pkgs, ... }: {
      time.timeZone = "UTC";
      environment.systemPackages = [ pkgs.htop ];
    };

    # Serves pages, asks the orders of its neighbour and signatures of another qube. It has curl, and the other has not.
    containers.front = {
      config = { pkgs, ... }: { environment.systemPackages = [ pkgs.curl ]; };
      services."nexus.Http" = { kind = "socket"; };
      calls = [
        { service = "nexus.Query"; argument = "orders"; target = ":orders"; }
        { service = "nexus.Sign"; target = "vault:gpg"; ask = true; }
      ];
      resources.memory = 256;
    };

    containers.orders = {
      config = { pkgs, ... }: { environment.systemPackages = [ pkgs.sqlite ]; };
      services."nexus.Query".program = "/run/current-system/sw/bin/query-orders";
      persist = [ "/var/lib/orders" ];
    };
  };

  qubes.vault = {
    memory = 384;
    private.size = 256;

    containers.gpg = {
      config = { pkgs, ... }: { environment.systemPackages = [ pkgs.gnupg ]; };
      services."nexus.Sign".program = "/run/current-system/sw/bin/sign";
      persist = [ "/var/lib/gpg" ];
    };
  };

  policy.rules = [
    # Whatever else is added: business does not reach the vault but by what is declared above.
    { service = "*"; source = "@tag:business"; target = "vault"; action = "deny"; }
  ];
}
